//! Runs a program to its end, streaming its lines.

use std::{collections::VecDeque, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use kiln_core::event::Stream;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{Limits, Running, Spec, Stdin, lines::Lines, spawn};
use crate::error::ProcessError;

/// Lines of stderr kept for the error.
const TAIL: usize = 20;
/// Bytes of stdout kept.
const CAPTURE: usize = 16 << 20;
/// How long output is still read after the program ended while something it started holds it open.
const DRAIN: Duration = Duration::from_millis(500);

/// A program that ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// The first 16 MiB, where stdout was a pipe.
    pub stdout: Vec<u8>,
    /// Whether stdout was longer.
    pub truncated: bool,
    /// The last 20 lines, where stderr was a pipe.
    pub stderr: Vec<String>,
    pub took: Duration,
}

/// Runs a program; anything but exit status 0 is an error that quotes the command and its last words.
/// `line` gets every line of both streams, without its end; a line over 16 KiB comes in pieces.
pub async fn run(
    spec: &Spec,
    limits: &Limits,
    line: &mut (dyn FnMut(Stream, &str) + Send),
) -> Result<Finished, ProcessError> {
    let finished = run_to_end(spec, limits, line).await?;
    if finished.status.success() {
        return Ok(finished);
    }
    let status = match (finished.status.code(), finished.status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
    };
    Err(ProcessError::Failed { command: spec.to_string(), status, stderr: finished.stderr })
}

/// Like [`run`], but any exit status is a result.
pub async fn run_to_end(
    spec: &Spec,
    limits: &Limits,
    line: &mut (dyn FnMut(Stream, &str) + Send),
) -> Result<Finished, ProcessError> {
    let start = Instant::now();
    if limits.cancel.is_cancelled() {
        return Err(ProcessError::Cancelled);
    }
    let mut running = spawn(spec).await?;
    let feeder = feed(spec, &mut running);
    let mut captured = Captured::default();
    let limit = limits.deadline.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
    let ended = tokio::select! {
        biased;
        () = limits.cancel.cancelled() => Err(ProcessError::Cancelled),
        status = drive(&mut running, &mut captured, line) => status,
        () = tokio::time::sleep_until(start + limit) => {
            Err(ProcessError::TimedOut { command: spec.to_string(), limit, stderr: Vec::new() })
        }
    };
    if let Some(feeder) = feeder {
        feeder.abort();
    }
    match ended {
        Ok(status) => {
            // What a program leaves running on purpose (a daemon) stays; it dies with nobody but itself.
            running.let_go();
            let Captured { stdout, truncated, stderr } = captured;
            Ok(Finished { status, stdout, truncated, stderr: stderr.into(), took: start.elapsed() })
        }
        Err(error) => {
            running.end().await;
            Err(match error {
                ProcessError::TimedOut { command, limit, .. } => {
                    ProcessError::TimedOut { command, limit, stderr: captured.stderr.into() }
                }
                other => other,
            })
        }
    }
}

#[derive(Debug, Default)]
struct Captured {
    stdout: Vec<u8>,
    truncated: bool,
    stderr: VecDeque<String>,
}

fn feed(spec: &Spec, running: &mut Running) -> Option<tokio::task::JoinHandle<()>> {
    let mut pipe = running.stdin.take()?;
    let Stdin::Bytes(bytes) = &spec.stdin else { return None };
    let bytes = bytes.clone();
    // A program that does not read all of its input says what is wrong itself.
    Some(tokio::spawn(async move {
        let _ = pipe.write_all(&bytes).await;
    }))
}

async fn drive(
    running: &mut Running,
    captured: &mut Captured,
    line: &mut (dyn FnMut(Stream, &str) + Send),
) -> Result<ExitStatus, ProcessError> {
    let (mut out, mut err) = (running.stdout.take(), running.stderr.take());
    let (mut out_bytes, mut err_bytes) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut out_lines, mut err_lines) = (Lines::default(), Lines::default());
    let mut status = None;
    let mut drained = Instant::now();
    while out.is_some() || err.is_some() || status.is_none() {
        tokio::select! {
            count = read(&mut out, &mut out_bytes), if out.is_some() => {
                let bytes = &out_bytes[..count];
                let room = bytes.len().min(CAPTURE - captured.stdout.len());
                captured.stdout.extend_from_slice(&bytes[..room]);
                captured.truncated |= room < bytes.len();
                out_lines.push(bytes, &mut |text| line(Stream::Stdout, text));
            }
            count = read(&mut err, &mut err_bytes), if err.is_some() => {
                err_lines.push(&err_bytes[..count], &mut |text| keep(captured, text, line));
            }
            ended = running.wait(), if status.is_none() => {
                status = Some(ended?);
                drained = Instant::now() + DRAIN;
            }
            () = tokio::time::sleep_until(drained), if status.is_some() => break,
        }
    }
    out_lines.finish(&mut |text| line(Stream::Stdout, text));
    err_lines.finish(&mut |text| keep(captured, text, line));
    match status {
        Some(status) => Ok(status),
        None => running.wait().await,
    }
}

fn keep(captured: &mut Captured, text: &str, line: &mut (dyn FnMut(Stream, &str) + Send)) {
    if captured.stderr.len() == TAIL {
        captured.stderr.pop_front();
    }
    captured.stderr.push_back(text.to_owned());
    line(Stream::Stderr, text);
}

/// Reads once; at the end of the stream it closes `pipe` and gives 0.
async fn read(pipe: &mut Option<impl AsyncRead + Unpin>, bytes: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    let count = open.read(bytes).await.unwrap_or(0);
    if count == 0 {
        *pipe = None;
    }
    count
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::process::alive;

    fn sh(script: &str) -> Spec {
        Spec::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn a_failure_shows_command_status_and_the_last_lines_of_stderr() {
        let spec = sh("seq 1 30 >&2; exit 3");
        let error = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap_err().to_string();
        assert!(error.starts_with("`sh -c 'seq 1 30 >&2; exit 3'` exited with status 3"), "{error}");
        assert!(error.contains("\n    11\n") && error.ends_with("    30") && !error.contains("\n    10\n"), "{error}");
    }

    #[tokio::test]
    async fn streams_lines_of_both_streams_and_feeds_stdin() {
        let mut seen = Vec::new();
        let spec = sh("cat; echo oops >&2").stdin(Stdin::Bytes(b"a\nb".to_vec()));
        let finished = run(&spec, &Limits::default(), &mut |stream, text| seen.push((stream, text.to_owned()))).await;
        assert_eq!(finished.unwrap().stdout, b"a\nb");
        seen.sort_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(seen.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["a", "b", "oops"]);
        assert_eq!(seen[2].0, Stream::Stderr);
    }

    #[tokio::test]
    async fn huge_output_stays_bounded_and_says_so() {
        let spec = Spec::new("head").args(["-c", "20M", "/dev/zero"]);
        let finished = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap();
        assert!(finished.truncated && finished.stdout.len() == CAPTURE);
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_output_open_does_not_hold_the_caller() {
        let spec = sh("sleep 1000 & echo $!");
        let finished = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap();
        let pid = String::from_utf8(finished.stdout).unwrap().trim().parse().unwrap();
        crate::process::kill_group(pid, true);
    }

    #[tokio::test]
    async fn a_time_limit_and_a_cancel_both_end_the_group() {
        let limits = Limits { deadline: Some(Duration::from_millis(200)), ..Limits::default() };
        let mut pids = Vec::new();
        let mut note = |_: Stream, text: &str| pids.push(text.parse::<u32>().unwrap());
        let error = run(&sh("sleep 1000 & echo $!; echo $$; wait"), &limits, &mut note).await.unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }));
        let cancel = CancellationToken::new();
        let limits = Limits { deadline: None, cancel: cancel.clone() };
        let mut stop = |_: Stream, text: &str| {
            pids.push(text.parse::<u32>().unwrap());
            cancel.cancel();
        };
        let error = run(&sh("echo $$; sleep 1000"), &limits, &mut stop).await.unwrap_err();
        assert!(matches!(error, ProcessError::Cancelled));
        assert_eq!(pids.len(), 3);
        for pid in [pids[1], pids[2]] {
            assert!(!crate::process::start_time(pid).is_some_and(|start| alive(pid, start)), "{pid} lives");
        }
    }
}

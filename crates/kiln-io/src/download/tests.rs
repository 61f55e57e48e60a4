//! Downloads from a local server with faults.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{guest::Quiet, time::SystemClock};

/// One answer of the server, in order of the connections.
#[derive(Debug, Clone)]
enum Answer {
    /// Serves ranges when asked with the right `If-Range`; cuts the connection after `cut` bytes of body.
    File {
        body: Vec<u8>,
        etag: &'static str,
        cut: Option<usize>,
    },
    /// One byte at a time, for ever.
    Drip,
    /// Headers, then silence.
    Silence,
    Redirect(&'static str),
    Status(&'static str),
    /// A body without a length that never ends.
    Endless,
}

/// Answers one connection each; the requests as they came.
async fn serve(answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    tokio::spawn(async move {
        let mut answers = VecDeque::from(answers);
        while let (Some(answer), Ok((mut stream, _))) = (answers.pop_front(), listener.accept().await) {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            requests.lock().unwrap().push(request.clone());
            tokio::spawn(async move { reply(&mut stream, &request, answer).await });
        }
    });
    (format!("http://{address}/disk.qcow2"), seen)
}

async fn reply(stream: &mut tokio::net::TcpStream, request: &str, answer: Answer) -> io::Result<()> {
    match answer {
        Answer::File { body, etag, cut } => {
            let field = |name: &str| request.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let matches = field("if-range:").is_none_or(|validator| validator == etag);
            let from = field("range: bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
            let (status, from) = match from.filter(|_| matches) {
                Some(from) => (
                    format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{}", body.len() - 1, body.len()),
                    from,
                ),
                None => ("200 OK".to_owned(), 0),
            };
            let rest = &body[from..];
            let head = format!(
                "HTTP/1.1 {status}\r\nETag: {etag}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                rest.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&rest[..cut.unwrap_or(rest.len()).min(rest.len())]).await?;
        }
        Answer::Drip | Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
            let (piece, pause) = match answer {
                Answer::Drip => (1, Duration::from_millis(5)),
                _ => (1 << 16, Duration::ZERO),
            };
            loop {
                stream.write_all(&vec![7; piece]).await?;
                SystemClock::new().sleep(pause).await;
            }
        }
        Answer::Silence => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n").await?;
            std::future::pending::<()>().await;
        }
        Answer::Redirect(to) => {
            let head =
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
        }
        Answer::Status(status) => {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
        }
    }
    stream.shutdown().await
}

fn body() -> Vec<u8> {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

fn file(cut: Option<usize>) -> Answer {
    Answer::File { body: body(), etag: "\"one\"", cut }
}

struct Case {
    _directory: tempfile::TempDir,
    download: Download,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Case {
    async fn of(answers: Vec<Answer>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (url, seen) = serve(answers).await;
        let target = directory.path().join("disk");
        let limits = Limits { retries: 1, ..Limits::default() };
        Self { _directory: directory, download: Download { url, digest: Digest::of(&body()), target, limits }, seen }
    }

    async fn run(&self) -> Result<(), DownloadError> {
        download(&self.download, &SystemClock::new(), &CancellationToken::new(), &Quiet).await
    }

    fn beside(&self) -> usize {
        fs::read_dir(self.download.target.parent().unwrap()).unwrap().count()
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_where_it_broke() {
    let case = Case::of(vec![file(Some(500_000)), file(None)]).await;
    case.run().await.unwrap();
    assert_eq!(fs::read(&case.download.target).unwrap(), body());
    assert_eq!(case.beside(), 1);
    let second = case.requests().remove(1);
    assert!(second.contains("range: bytes=") && second.contains("if-range: \"one\""), "{second}");
}

#[tokio::test]
async fn a_killed_run_leaves_a_part_that_the_next_one_takes_up() {
    let cut = file(Some(500_000));
    let case = Case::of(vec![cut, Answer::Status("404 Not Found"), file(None)]).await;
    assert!(matches!(case.run().await, Err(DownloadError::Status { .. })));
    assert!(case.beside() == 2);
    case.run().await.unwrap();
    assert!(case.requests()[2].contains("range: bytes="));
    assert_eq!(fs::read(&case.download.target).unwrap(), body());
}

#[tokio::test]
async fn a_file_that_changed_between_ranges_starts_again() {
    let old = Answer::File { body: vec![1; 900_000], etag: "\"old\"", cut: Some(400_000) };
    let case = Case::of(vec![old, file(None)]).await;
    case.run().await.unwrap();
    assert_eq!(fs::read(&case.download.target).unwrap(), body());
}

#[tokio::test]
async fn a_changed_file_under_an_unchanged_etag_is_caught_by_the_digest_over_the_whole() {
    let old = Answer::File { body: vec![1; 1_200_000], etag: "\"one\"", cut: Some(400_000) };
    let case = Case::of(vec![old, Answer::Status("404 Not Found"), file(None), file(None)]).await;
    assert!(case.run().await.is_err());
    case.run().await.unwrap();
    assert_eq!(fs::read(&case.download.target).unwrap(), body());
    assert!(!case.requests()[3].contains("range:"));
}

#[tokio::test]
async fn wrong_bytes_are_refused_with_both_digests_and_nothing_is_kept() {
    let wrong = Answer::File { body: vec![9; 1000], etag: "\"x\"", cut: None };
    let case = Case::of(vec![wrong]).await;
    let error = case.run().await.unwrap_err().to_string();
    assert!(error.contains(&Digest::of(&body()).to_string()), "{error}");
    assert!(error.contains(&Digest::of(&[9; 1000]).to_string()) && error.contains("1000 bytes"), "{error}");
    assert_eq!(case.beside(), 0);
}

#[tokio::test]
async fn a_drip_and_a_silence_come_to_an_end() {
    let mut case = Case::of(vec![Answer::Drip]).await;
    case.download.limits.window = Duration::from_millis(300);
    assert!(matches!(case.run().await, Err(DownloadError::Slow { .. })));
    let mut case = Case::of(vec![Answer::Silence, Answer::Silence]).await;
    case.download.limits.stall = Duration::from_millis(200);
    let error = case.run().await.unwrap_err().to_string();
    assert!(error.contains("nothing arrived"), "{error}");
}

#[tokio::test]
async fn an_endless_body_is_cut_off_and_not_kept() {
    let mut case = Case::of(vec![Answer::Endless]).await;
    case.download.limits.bytes = 1 << 20;
    assert!(matches!(case.run().await, Err(DownloadError::TooLong { limit: 1_048_576, .. })));
    assert_eq!(case.beside(), 0);
}

#[tokio::test]
async fn redirects_into_files_and_other_schemes_are_refused() {
    for to in ["file:///etc/passwd", "ftp://mirror.example/disk", "gopher://x.example/"] {
        let case = Case::of(vec![Answer::Redirect(to)]).await;
        let error = case.run().await.unwrap_err();
        assert!(matches!(&error, DownloadError::Redirect { to: there, .. } if there == to), "{to}: {error}");
    }
    for url in ["file:///etc/passwd", "ftp://mirror.example/x", "no url"] {
        assert!(matches!(approve(url), Err(DownloadError::Url { .. })), "{url}");
    }
}

#[test]
fn redirects_keep_encryption_and_stay_off_the_build_host() {
    let refused = |from: &str, to: &str| refusal(&Url::parse(from).unwrap(), &Url::parse(to).unwrap(), 1).is_some();
    assert!(refused("https://a.example/", "http://a.example/"));
    assert!(refused("https://a.example/", "https://169.254.169.254/latest"));
    assert!(refused("http://a.example/", "http://[::1]/"));
    assert!(refused("http://a.example/", "http://localhost/"));
    assert!(!refused("http://a.example/", "https://b.example/"));
    assert!(!refused("http://127.0.0.1:1/", "http://127.0.0.1:2/"));
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let case = Case::of(vec![Answer::Status("503 Service Unavailable"), file(None)]).await;
    case.run().await.unwrap();
    assert_eq!(case.requests().len(), 2);
}

#[tokio::test]
async fn passwords_in_urls_are_not_shown() {
    let url = "http://user:hunter2@127.0.0.1:1/disk";
    let error = fetch(url, 10, &CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("hunter2"), "{error}");
}

struct CancelAt(CancellationToken);
impl Progress for CancelAt {
    fn at(&self, done: u64) {
        if done > 3 {
            self.0.cancel();
        }
    }
}

#[tokio::test]
async fn cancelling_stops_a_download_and_keeps_its_part() {
    let case = Case::of(vec![Answer::Drip]).await;
    let cancel = CancellationToken::new();
    let outcome = download(&case.download, &SystemClock::new(), &cancel, &CancelAt(cancel.clone())).await;
    assert!(matches!(outcome, Err(DownloadError::Cancelled)));
    assert_eq!(case.beside(), 2);
}

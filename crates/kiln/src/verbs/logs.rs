//! `kiln logs`: what a build said.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    time::{Duration, SystemTime},
};

use kiln_core::event::Event;
use kiln_io::{
    ledger,
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::Logs,
    builds::{self, Build, Entry},
    failure::{Exit, Failure, Outcome},
    output,
    render::{At, EVENTS, LOG, Plain, Renderer as _},
    surroundings,
};

/// How often a build that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn run(arguments: Logs) -> Outcome {
    let dirs = surroundings::dirs()?;
    if arguments.list {
        let heading = ["BUILD", "IMAGE", "BEGAN"].map(str::to_owned).to_vec();
        let rows = builds::all(&dirs)?.into_iter().rev().map(|build| vec![build.id, build.image, build.began]);
        output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))?;
        return Ok(Exit::Done);
    }
    let build = builds::find(&dirs, arguments.which.as_deref(), |_| true)?.ok_or_else(|| match &arguments.which {
        Some(which) => {
            Failure::usage(format!("there is no build or image `{which}`")).hint("`kiln logs --list` shows the builds")
        }
        None => Failure::usage("nothing was built yet"),
    })?;
    if !arguments.json {
        output::talk(&format!(
            "build {} of {}; as it came: {}",
            build.id,
            build.image,
            build.directory.join(LOG).display()
        ));
    }
    let mut reader = Reader::open(&build, &arguments)?;
    reader.drain()?;
    if arguments.follow && !reader.ended {
        follow(&mut reader, &build).await?;
    }
    if let Some(number) = arguments.step
        && !reader.shown
    {
        return Err(Failure::usage(format!("build {} has no output of a step {number}", build.id)));
    }
    Ok(Exit::Done)
}

async fn follow(reader: &mut Reader, build: &Build) -> Result<(), Failure> {
    let policy = Policy { first: LOOK, max: LOOK, deadline: Duration::MAX };
    let state = std::cell::RefCell::new(reader);
    let ended = poll_until(&SystemClock::new(), policy, &CancellationToken::new(), || async {
        // Asked before the file is read: what a build wrote before it went away is still shown.
        let alive = ledger::read(&build.directory).is_ok_and(|journal| ledger::is_owned(&build.directory, &journal));
        let mut reader = state.borrow_mut();
        match reader.drain() {
            Ok(()) if reader.ended || !alive => Attempt::Done(alive || reader.ended),
            Ok(()) => Attempt::Again(()),
            Err(_) => Attempt::Stop(()),
        }
    })
    .await;
    if ended == Ok(false) {
        output::talk("the build ended without saying so; `kiln clean` releases what it left");
    }
    Ok(())
}

/// Shows the events of a build as far as they are written.
struct Reader {
    file: BufReader<File>,
    pending: String,
    plain: Plain<io::Stdout>,
    json: bool,
    step: Option<usize>,
    shown: bool,
    ended: bool,
}

impl Reader {
    fn open(build: &Build, arguments: &Logs) -> Result<Self, Failure> {
        let path = build.directory.join(EVENTS);
        let file = File::open(&path).map_err(kiln_io::fs::failed("open", &path, 0))?;
        Ok(Self {
            file: BufReader::new(file),
            pending: String::new(),
            plain: Plain::new(io::stdout()),
            json: arguments.json,
            step: arguments.step,
            shown: false,
            ended: false,
        })
    }

    fn drain(&mut self) -> Result<(), Failure> {
        loop {
            let count = self.file.read_line(&mut self.pending);
            let count = count.map_err(|error| Failure::new("cannot read the events").because(error.to_string()))?;
            if count == 0 || !self.pending.ends_with('\n') {
                return Ok(());
            }
            let line = std::mem::take(&mut self.pending);
            // A newer kiln may write events that this one does not know.
            if let Ok(entry) = serde_json::from_str::<Entry>(&line) {
                self.show(&line, &entry)?;
            }
        }
    }

    fn show(&mut self, line: &str, entry: &Entry) -> Result<(), Failure> {
        self.ended |= matches!(entry.event, Event::BuildFinished { .. } | Event::BuildFailed { .. });
        let of = match &entry.event {
            Event::StepStarted { number, .. } | Event::Output { number, .. } | Event::StepFinished { number, .. } => {
                Some(*number)
            }
            _ => None,
        };
        if self.step.is_some() && of != self.step {
            if let Event::BuildStarted { steps, .. } = &entry.event {
                self.plain.expect(*steps);
            }
            return Ok(());
        }
        self.shown = true;
        if self.json {
            return output::data(line);
        }
        let at = At { elapsed: Duration::from_millis(entry.elapsed), wall: SystemTime::UNIX_EPOCH };
        self.plain.event(at, &entry.event);
        let _ = io::stdout().flush();
        Ok(())
    }
}

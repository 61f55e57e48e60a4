//! One event a line of JSON, with the time it happened. The format is documented in `docs/events.md`.

use std::{fmt, io::Write};

use kiln_core::{ImageName, event::Event};

use super::{At, Renderer, milliseconds};
use crate::calendar::Moment;

/// Writes JSON lines to `out`, each with the build it belongs to: several may go on at once.
pub(crate) struct Json<W> {
    out: W,
    image: ImageName,
    /// The build's id; a build that does not begin has none.
    build: Option<String>,
}

impl<W: Write + Send> Json<W> {
    pub(crate) const fn new(out: W, image: ImageName, build: Option<String>) -> Self {
        Self { out, image, build }
    }
}

/// The line of an event, with its end.
pub(crate) fn line(at: At, event: &Event) -> String {
    format!("{}\n", serde_json::Value::Object(object(at, event)))
}

fn object(at: At, event: &Event) -> serde_json::Map<String, serde_json::Value> {
    let mut object = match serde_json::to_value(event) {
        Ok(serde_json::Value::Object(object)) => object,
        // Every event is a struct variant with a tag, which serialises to an object.
        _ => serde_json::Map::new(),
    };
    object.insert("time".to_owned(), Moment::of(at.wall).rfc3339().into());
    object.insert("elapsed".to_owned(), milliseconds(at.elapsed).into());
    object
}

impl<W: Write + Send> Renderer for Json<W> {
    fn event(&mut self, at: At, event: &Event) {
        let mut object = object(at, event);
        object.entry("image").or_insert_with(|| self.image.as_str().into());
        if let Some(build) = &self.build {
            object.entry("build").or_insert_with(|| build.as_str().into());
        }
        // A reader that went away does not stop the bake.
        let _ = self
            .out
            .write_all(format!("{}\n", serde_json::Value::Object(object)).as_bytes())
            .and_then(|()| self.out.flush());
    }
}

impl<W> fmt::Debug for Json<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use kiln_core::{
        Digest,
        event::{AuditDifference, CheckedOn, Outcome, Phase, Stream, Unit},
    };

    use super::*;

    const DOCUMENT: &str = include_str!("../../../../docs/events.md");
    const BUILD: &str = "b-6b01a9d1-f2791225";
    const STATE: &str = "/home/ada/.local/state/kiln/builds/b-6b01a9d1-f2791225";

    /// The event that follows `event` in the document; a new event does not compile until it has its place here.
    #[expect(clippy::too_many_lines, reason = "one arm an event")]
    fn after(event: Option<&Event>) -> Option<Event> {
        let disk = Digest::of(b"disk");
        let text = str::to_owned;
        Some(match event {
            None => Event::BuildStarted {
                build: text(BUILD),
                image: "web".parse().unwrap(),
                recipe: disk,
                steps: 2,
                log: format!("{STATE}/log"),
            },
            Some(Event::BuildStarted { .. }) => {
                Event::PhaseStarted { phase: Phase::Base, detail: text("debian bookworm") }
            }
            Some(Event::PhaseStarted { .. }) => {
                Event::Progress { phase: Phase::Seal, done: 1 << 20, total: 4 << 30, unit: Unit::Bytes }
            }
            Some(Event::Progress { .. }) => {
                Event::PhaseFinished { phase: Phase::Boot, milliseconds: 15_700, detail: text("sshd answers") }
            }
            Some(Event::PhaseFinished { .. }) => {
                Event::StepStarted { number: 1, name: text("web server"), provisioner: text("nginx") }
            }
            Some(Event::StepStarted { .. }) => {
                Event::Output { number: 1, stream: Stream::Stdout, text: text("Reading package lists...\n") }
            }
            Some(Event::Output { .. }) => {
                Event::StepFinished { number: 1, name: text("web server"), outcome: Outcome::Ok, milliseconds: 41_200 }
            }
            Some(Event::StepFinished { .. }) => {
                Event::StepCached { number: 1, name: text("web server"), ran: 1_795_260_000, milliseconds: 41_200 }
            }
            Some(Event::StepCached { .. }) => Event::CheckpointUsed {
                number: 1,
                name: text("web server"),
                made: 1_795_260_001,
                bytes: 168_000_000,
                saved: 57_300,
            },
            Some(Event::CheckpointUsed { .. }) => Event::CheckpointMissed {
                number: 2,
                name: text("files"),
                reason: text("option `content` differs: hello -> hullo"),
            },
            Some(Event::CheckpointMissed { .. }) => {
                Event::CheckpointTaken { number: 2, name: text("files"), pause: 900, bytes: 168_000_000 }
            }
            Some(Event::CheckpointTaken { .. }) => Event::CheckFinished {
                number: 1,
                name: text("http http://localhost/"),
                on: CheckedOn::Artifact,
                passed: true,
                evidence: text("status 200"),
                milliseconds: 120,
            },
            Some(Event::CheckFinished { .. }) => Event::HygieneFinding {
                id: text("H10"),
                level: text("error"),
                path: text("/root/.bash_history"),
                detail: text("history of a shell"),
                waived: None,
            },
            Some(Event::HygieneFinding { .. }) => Event::AuditFinished {
                paths: 24_000,
                same: 23_999,
                differing: vec![AuditDifference {
                    path: text("/var/lib/web/started"),
                    how: text("content"),
                    reason: String::new(),
                }],
            },
            Some(Event::AuditFinished { .. }) => {
                Event::Warning { message: text("KVM opens, but no guest answers under it; taking TCG") }
            }
            Some(Event::Warning { .. }) => {
                Event::Sealed { disk, qcow2: format!("{STATE}/artifact/web.qcow2"), bytes: 194_641_920 }
            }
            Some(Event::Sealed { .. }) => Event::Published {
                image: "web".parse().unwrap(),
                version: "2026.11.21.1".parse().unwrap(),
                disk,
                registry: text("/home/ada/.local/share/kiln/registry"),
                already: false,
            },
            Some(Event::Published { .. }) => Event::BuildSkipped {
                image: "web".parse().unwrap(),
                version: "2026.11.21.1".parse().unwrap(),
                disk,
                reason: text("nothing it is made from has changed since it was baked 3 h ago"),
            },
            Some(Event::BuildSkipped { .. }) => {
                Event::BuildLeftOut { image: "shop".parse().unwrap(), reason: text("web failed") }
            }
            Some(Event::BuildLeftOut { .. }) => Event::BuildFailed {
                message: text("provisioner `nginx` failed at step 1 of 2"),
                causes: vec![text("`apt-get install -y nginx` exited with status 100")],
                hint: Some(text("rerun with `--on-error keep` and look inside with `kiln ssh`")),
                left: Vec::new(),
            },
            Some(Event::BuildFailed { .. }) => Event::BuildFinished { build: text(BUILD), milliseconds: 98_700 },
            Some(Event::BuildFinished { .. }) => return None,
        })
    }

    #[test]
    fn the_document_has_every_event_with_every_field_and_a_true_example() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_267_596);
        let mut last = None;
        let mut headings = 0;
        while let Some(event) = after(last.as_ref()) {
            let line = line(At { elapsed: Duration::ZERO, wall }, &event);
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
            let name = object["event"].as_str().unwrap();
            let section = DOCUMENT.split("\n## ").find(|section| section.starts_with(&format!("`{name}`\n")));
            let section = section.unwrap_or_else(|| panic!("docs/events.md has no section `{name}`"));
            for field in object.keys().filter(|field| !["event", "time", "elapsed"].contains(&field.as_str())) {
                assert!(section.contains(&format!("| `{field}` |")), "docs/events.md: `{name}` lacks `{field}`");
            }
            // Compared as values: the order of keys is nobody's business.
            let mut examples = section.lines().filter_map(|line| serde_json::from_str(line).ok());
            assert!(
                examples.any(|example: serde_json::Map<_, _>| example == object),
                "docs/events.md: the example of `{name}` should be\n{line}"
            );
            let rows = section.lines().filter(|line| line.starts_with("| `")).count();
            assert_eq!(rows, object.len() - 3, "docs/events.md: `{name}` has a field that is not there");
            headings += 1;
            last = Some(event);
        }
        assert_eq!(DOCUMENT.matches("\n## `").count(), headings);
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let at = At { elapsed: Duration::from_millis(1234), wall: SystemTime::UNIX_EPOCH };
        let mut last = None;
        while let Some(event) = after(last.as_ref()) {
            let entry: crate::builds::Entry = serde_json::from_str(&line(at, &event)).unwrap();
            assert_eq!((entry.event, entry.elapsed), (event.clone(), 1234));
            last = Some(event);
        }
    }
}

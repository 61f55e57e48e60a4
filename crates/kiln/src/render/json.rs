//! One event a line of JSON, with the time it happened. The format is documented in `docs/events.md`.

use std::{fmt, io::Write};

use kiln_core::event::Event;

use super::{At, Renderer, milliseconds};
use crate::calendar::Moment;

/// Writes JSON lines to `out`.
pub(crate) struct Json<W> {
    out: W,
}

impl<W: Write + Send> Json<W> {
    pub(crate) const fn new(out: W) -> Self {
        Self { out }
    }
}

/// The line of an event, with its end.
pub(crate) fn line(at: At, event: &Event) -> String {
    let mut object = match serde_json::to_value(event) {
        Ok(serde_json::Value::Object(object)) => object,
        // Every event is a struct variant with a tag, which serialises to an object.
        _ => serde_json::Map::new(),
    };
    object.insert("time".to_owned(), Moment::of(at.wall).rfc3339().into());
    object.insert("elapsed".to_owned(), milliseconds(at.elapsed).into());
    format!("{}\n", serde_json::Value::Object(object))
}

impl<W: Write + Send> Renderer for Json<W> {
    fn event(&mut self, at: At, event: &Event) {
        // A reader that went away does not stop the bake.
        let _ = self.out.write_all(line(at, event).as_bytes()).and_then(|()| self.out.flush());
    }
}

impl<W> fmt::Debug for Json<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json")
    }
}

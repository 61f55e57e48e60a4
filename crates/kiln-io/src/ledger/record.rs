//! The lines of a ledger, and what they add up to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{EntryId, FORMAT, Journal, LedgerError, Outstanding, Resource};
use crate::process::Identity;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(super) enum Record {
    Opened {
        format: u32,
        kiln: String,
        build: String,
        owner: Identity,
    },
    Acquired {
        id: EntryId,
        what: String,
        #[serde(flatten)]
        resource: Resource,
    },
    Started {
        id: EntryId,
        identity: Identity,
    },
    Released {
        id: EntryId,
    },
    Kept,
}

/// Enough of the first line to refuse a format that is not known yet.
#[derive(Deserialize)]
struct Heading {
    format: u32,
    #[serde(default)]
    kiln: String,
}

/// Adds the lines up. The part after the last line end is ignored.
pub(super) fn replay(path: &Path, text: &[u8]) -> Result<Journal, LedgerError> {
    let damaged = |line: usize, reason: String| LedgerError::Damaged { path: path.to_owned(), line, reason };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut journal: Option<Journal> = None;
    for (number, line) in text[..whole].split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        if let Ok(heading) = serde_json::from_slice::<Heading>(line)
            && heading.format > FORMAT
        {
            return Err(LedgerError::Newer { path: path.to_owned(), format: heading.format, kiln: heading.kiln });
        }
        let record: Record = serde_json::from_slice(line).map_err(|error| damaged(number + 1, error.to_string()))?;
        apply(&mut journal, record).map_err(|reason| damaged(number + 1, reason.to_owned()))?;
    }
    journal.ok_or_else(|| damaged(1, "it has no first line".to_owned()))
}

fn apply(journal: &mut Option<Journal>, record: Record) -> Result<(), &'static str> {
    match (journal.as_mut(), record) {
        (None, Record::Opened { build, owner, .. }) => {
            *journal = Some(Journal { build, owner, kept: false, outstanding: Vec::new() });
        }
        (None, _) => return Err("the first line is not `opened`"),
        (Some(journal), Record::Opened { owner, .. }) => journal.owner = owner,
        (Some(journal), Record::Acquired { id, what, resource }) => {
            journal.outstanding.push(Outstanding { id, what, resource });
        }
        (Some(journal), Record::Started { id, identity }) => {
            for entry in journal.outstanding.iter_mut().filter(|entry| entry.id == id) {
                if let Resource::Process { identity: known, .. } = &mut entry.resource {
                    *known = Some(identity.clone());
                }
            }
        }
        // Released twice is as good as once: two cleaners may have met.
        (Some(journal), Record::Released { id }) => journal.outstanding.retain(|entry| entry.id != id),
        (Some(journal), Record::Kept) => journal.kept = true,
    }
    Ok(())
}

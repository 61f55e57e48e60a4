//! How the channels of an image moved: what matters of its log, of which every entry is written once.

use kiln_core::{ChannelName, ImageName};
use kiln_registry::{Change, RegistryError};
use serde::{Deserialize, Serialize};

use crate::{Index, database::About};

/// The log up to a revision.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Moves {
    rev: u64,
    /// The change of that revision, if its entry is there: the log of another registry in the same place has another.
    last: Option<Change>,
    /// Those that moved or restricted a channel, oldest first.
    changes: Vec<Change>,
}

impl Index {
    /// The revisions that moved or restricted `channel`, oldest first.
    pub fn history(&self, image: &ImageName, channel: &ChannelName) -> Result<Vec<Change>, RegistryError> {
        if !self.registry().channels(image)?.contains_key(channel) {
            // It says what there is.
            return self.registry().history(image, Some(channel));
        }
        let mut moves = self.moves(image)?;
        moves.retain(|change| change.action.concerns() == Some(channel));
        Ok(moves)
    }

    /// The same of all channels.
    pub fn moves(&self, image: &ImageName) -> Result<Vec<Change>, RegistryError> {
        // What is logged and not yet in the head has not happened yet.
        let (name, rev) = (image.as_str(), self.registry().revision(image)?);
        let known = self.with(|database| database.line::<Moves>(About::Moves, name)).flatten().unwrap_or_default();
        let same = known.rev <= rev && (known.rev == 0 || known.last == self.registry().change(image, known.rev)?);
        let mut moves = if same { known } else { Moves::default() };
        if moves.rev < rev {
            for rev in moves.rev + 1..=rev {
                moves.last = self.registry().change(image, rev)?;
                moves.changes.extend(moves.last.clone().filter(|change| change.action.concerns().is_some()));
            }
            moves.rev = rev;
            self.with(|database| database.put_line(About::Moves, name, &moves));
        }
        Ok(moves.changes)
    }
}

//! Which blocks of an unfinished snapshot are written, so that an interrupted upload goes on: EBS does not tell.
//!
//! A line of 40 bytes for each block that was acknowledged: its number, its SHA-256, and a check that binds both to the
//! snapshot. A line that does not check, torn by a kill or lost by a power cut, means that the block is put again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

const LINE: usize = 4 + 32 + 4;

/// What a snapshot's description says before the snapshot that it stands on.
const ON: &str = "kiln: on ";

/// The open journal of one snapshot.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    snapshot: String,
}

impl Journal {
    /// Opens the first of `paths` for writing, and reads what all of them know of `snapshot`.
    pub(super) fn open(paths: &[PathBuf], snapshot: &str) -> io::Result<(Self, BTreeMap<u32, [u8; 32]>)> {
        let mut sums = BTreeMap::new();
        for path in paths {
            sums.extend(read(path, snapshot)?);
        }
        let path = paths.first().ok_or(io::ErrorKind::NotFound)?;
        let file = File::create(path)?;
        let mut journal = Self { file, snapshot: snapshot.to_owned() };
        for (block, sum) in &sums {
            journal.add(*block, sum)?;
        }
        Ok((journal, sums))
    }

    pub(super) fn add(&mut self, block: u32, sum: &[u8; 32]) -> io::Result<()> {
        let mut line = Vec::with_capacity(LINE);
        line.extend(block.to_le_bytes());
        line.extend(sum);
        line.extend(check(&self.snapshot, &line));
        self.file.write_all(&line)
    }
}

fn read(path: &Path, snapshot: &str) -> io::Result<BTreeMap<u32, [u8; 32]>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        read => read?,
    };
    let line = |line: &[u8]| {
        let (written, checked) = line.split_at(LINE - 4);
        let (block, sum) = written.split_first_chunk::<4>()?;
        (check(snapshot, written) == checked).then_some((u32::from_le_bytes(*block), sum.try_into().ok()?))
    };
    Ok(bytes.chunks_exact(LINE).filter_map(line).collect())
}

fn check(snapshot: &str, written: &[u8]) -> [u8; 4] {
    let digest: [u8; 32] = Sha256::new().chain_update(snapshot).chain_update(written).finalize().into();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// The description of a snapshot: whoever goes on with it must know what it stands on, and EC2 does not say.
pub(super) fn description(parent: Option<&str>) -> String {
    format!("{ON}{}", parent.unwrap_or("nothing"))
}

/// The snapshot that one with this description stands on.
pub(super) fn parent_of(description: Option<&str>) -> Option<String> {
    let parent = description?.strip_prefix(ON)?;
    parent.starts_with("snap-").then(|| parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_was_written_by_whoever_was_before() {
        let directory = tempfile::tempdir().unwrap();
        let paths = [directory.path().join("new"), directory.path().join("old")];
        {
            let (mut journal, sums) = Journal::open(&paths[1..], "snap-1").unwrap();
            assert!(sums.is_empty());
            journal.add(7, &[1; 32]).unwrap();
            journal.add(9, &[2; 32]).unwrap();
        }
        let expected = BTreeMap::from([(7, [1; 32]), (9, [2; 32])]);
        assert_eq!(Journal::open(&paths, "snap-1").unwrap().1, expected);
        // What was taken over stands in the new one too.
        assert_eq!(Journal::open(&paths[..1], "snap-1").unwrap().1, expected);
        assert!(Journal::open(&paths, "snap-2").unwrap().1.is_empty());
    }

    #[test]
    fn a_torn_or_damaged_line_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blocks");
        let mut journal = Journal::open(std::slice::from_ref(&path), "snap-1").unwrap().0;
        for block in 0..3 {
            journal.add(block, &[9; 32]).unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[LINE + 10] ^= 1;
        bytes.truncate(3 * LINE - 1);
        bytes.extend([0; LINE]);
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path, "snap-1").unwrap().into_keys().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_description_names_what_the_snapshot_stands_on() {
        assert_eq!(parent_of(Some(&description(Some("snap-5")))), Some("snap-5".to_owned()));
        assert_eq!(parent_of(Some(&description(None))), None);
        assert_eq!(parent_of(Some("somebody's")), None);
    }
}

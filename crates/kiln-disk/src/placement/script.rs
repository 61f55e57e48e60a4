//! Edits as a script for `debugfs`, which writes ext4 without a mount and without root.

use std::{fmt::Write as _, path::Path};

use super::{
    PlacementError,
    edits::{Edit, Value, parent},
    inode::{Extent, Kind},
};

/// Commands, and the files they read beside the script.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) text: Vec<u8>,
    /// The inodes whose content is `content-<n>`.
    pub(super) contents: Vec<u32>,
    /// Where which inodes' content goes before the script runs.
    pub(super) rewritten: Vec<(Vec<Extent>, u32)>,
    /// What is `value-<n>`.
    pub(super) values: Vec<Vec<u8>>,
    directory: Option<Vec<u8>>,
}

pub(super) fn content_name(number: usize) -> String {
    format!("content-{number}")
}

pub(super) fn value_name(number: usize) -> String {
    format!("value-{number}")
}

impl Script {
    /// `now` is what the file system is told the time is: the same edits give the same bytes.
    pub(super) fn of(edits: &[Edit], now: u32) -> Result<Self, PlacementError> {
        let mut script = Self::default();
        script.line(&[b"set_current_time", format!("@{now}").as_bytes()]);
        for edit in edits {
            script.edit(edit)?;
        }
        Ok(script)
    }

    fn edit(&mut self, edit: &Edit) -> Result<(), PlacementError> {
        match edit {
            Edit::Remove(path) => self.line(&[b"rm", &absolute(path)?]),
            Edit::RemoveDirectory(path) => self.line(&[b"rmdir", &absolute(path)?]),
            Edit::MakeDirectory(path) => {
                let name = self.enter(path)?;
                self.line(&[b"mkdir", &name]);
            }
            Edit::Write(path, inode) => {
                let name = self.enter(path)?;
                let file = content_name(self.contents.len());
                self.contents.push(*inode);
                self.line(&[b"write", file.as_bytes(), &name]);
            }
            // Its blocks are written without `debugfs`, which cannot.
            Edit::Rewrite(extents, inode) => self.rewritten.push((extents.clone(), *inode)),
            Edit::Link { path, to } => {
                let name = self.enter(path)?;
                self.line(&[b"ln", &absolute(to)?, &name]);
            }
            Edit::SymbolicLink(path, target) => {
                let name = self.enter(path)?;
                self.line(&[b"symlink", &name, &quoted(target)?]);
            }
            Edit::Node { path, kind, major, minor } => {
                let name = self.enter(path)?;
                let (major, minor) = (major.to_string(), minor.to_string());
                match kind {
                    Kind::Character => self.line(&[b"mknod", &name, b"c", major.as_bytes(), minor.as_bytes()]),
                    Kind::Block => self.line(&[b"mknod", &name, b"b", major.as_bytes(), minor.as_bytes()]),
                    _ => self.line(&[b"mknod", &name, b"p"]),
                }
            }
            Edit::Set { path, field, value } => {
                let mut text = String::new();
                let _ = match value {
                    Value::Number(number) => write!(text, "{number}"),
                    Value::Octal(number) => write!(text, "0{number:o}"),
                    Value::Seconds(seconds) => write!(text, "@{seconds}"),
                };
                self.line(&[b"sif", &absolute(path)?, field.as_bytes(), text.as_bytes()]);
            }
            Edit::SetXattr { path, name, value } => {
                let file = value_name(self.values.len());
                self.values.push(value.clone());
                // Raw: as it stands on the disk.
                self.line(&[b"ea_set", b"-f", file.as_bytes(), b"-r", &absolute(path)?, &quoted(name)?]);
            }
            Edit::RemoveXattr { path, name } => self.line(&[b"ea_rm", &absolute(path)?, &quoted(name)?]),
        }
        Ok(())
    }

    /// Makes the path's directory the current one; its last part, quoted.
    fn enter(&mut self, path: &[u8]) -> Result<Vec<u8>, PlacementError> {
        let directory = parent(path);
        if self.directory.as_deref() != Some(directory) {
            self.line(&[b"cd", &absolute(directory)?]);
            self.directory = Some(directory.to_owned());
        }
        let name = &path[directory.len() + usize::from(!directory.is_empty())..];
        // `<12>` would be the file of this inode.
        if name.starts_with(b"<") {
            return Err(unwritable(name));
        }
        quoted(name)
    }

    fn line(&mut self, words: &[&[u8]]) {
        self.text.extend(words.join(&b' '));
        self.text.push(b'\n');
    }
}

fn absolute(path: &[u8]) -> Result<Vec<u8>, PlacementError> {
    quoted(&[b"/", path].concat())
}

/// A word for `debugfs`, whose quotes know no way to say a quote or the end of a line.
fn quoted(word: &[u8]) -> Result<Vec<u8>, PlacementError> {
    if word.iter().any(|byte| *byte == b'"' || byte.is_ascii_control()) {
        return Err(unwritable(word));
    }
    Ok([b"\"", word, b"\""].concat())
}

fn unwritable(name: &[u8]) -> PlacementError {
    PlacementError::Name(Path::new(&*String::from_utf8_lossy(name)).display().to_string())
}

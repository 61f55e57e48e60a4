//! Writes an upload as a tar stream in GNU's form, which GNU tar, bsdtar and busybox all read.
//!
//! Layout: POSIX.1-1988 headers with GNU's magic, `././@LongLink` records for long names (types `L` and `K`), base-256 for
//! sizes of 8 GiB and more. Everything belongs to root; times are zero.

use std::{
    fs::File,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path},
};

use crate::guest::{Content, Entry, GuestError};

const BLOCK: usize = 512;
/// Small pieces are gathered up to this size.
const PIECE: usize = 256 << 10;

/// Takes pieces of the stream; with the number of content bytes done. An error stops the writing.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Vec<u8>, u64) -> Result<(), GuestError>;

/// Refuses paths that would leave the target, or that tar cannot carry.
pub(super) fn check(entries: &[Entry]) -> Result<(), GuestError> {
    for Entry { path, .. } in entries {
        let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside || path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
            return Err(GuestError::Remote {
                operation: format!("uploading `{}`", path.display()),
                reason: "the path is empty, absolute or holds `..`".to_owned(),
            });
        }
    }
    Ok(())
}

/// Content bytes of all entries.
pub(super) fn size(entries: &[Entry]) -> u64 {
    entries.iter().map(content_size).sum()
}

fn content_size(entry: &Entry) -> u64 {
    match &entry.content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::File { bytes, .. } => *bytes,
        Content::Directory | Content::Link(_) => 0,
    }
}

/// Writes all entries and, as the last one, an empty file called `seal`: where it arrived, everything did.
pub(super) fn write(entries: &[Entry], seal: &str, sink: Sink<'_>) -> Result<(), GuestError> {
    let mut out = Gather { piece: Vec::with_capacity(PIECE), done: 0, sink };
    for entry in entries {
        out.entry(entry)?;
    }
    out.entry(&Entry { path: seal.into(), mode: 0o600, content: Content::Bytes(Vec::new()) })?;
    out.put(&[0; 2 * BLOCK])?;
    out.flush()
}

struct Gather<'a> {
    piece: Vec<u8>,
    done: u64,
    sink: Sink<'a>,
}

impl Gather<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), GuestError> {
        let path = entry.path.as_os_str().as_bytes();
        let nothing = Path::new("");
        let (kind, link) = match &entry.content {
            Content::Directory => (b'5', nothing),
            Content::Bytes(_) | Content::File { .. } => (b'0', nothing),
            Content::Link(target) => (b'2', target.as_path()),
        };
        let link = link.as_os_str().as_bytes();
        for (kind, name) in [(b'K', link), (b'L', path)] {
            if name.len() > 100 {
                self.put(&header(b"././@LongLink", b"", kind, 0o644, name.len() as u64 + 1))?;
                self.put(name)?;
                self.put(&vec![0; BLOCK - name.len() % BLOCK])?;
            }
        }
        let size = content_size(entry);
        self.put(&header(path, link, kind, entry.mode & 0o7777, size))?;
        match &entry.content {
            Content::Directory | Content::Link(_) => {}
            Content::Bytes(bytes) => {
                self.put(bytes)?;
                self.done += size;
            }
            Content::File { path, .. } => self.file(path, size)?,
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.put(&vec![0; padding])
    }

    fn file(&mut self, path: &Path, size: u64) -> Result<(), GuestError> {
        let failed = |source| GuestError::Local { path: path.display().to_string(), source };
        let mut file = File::open(path).map_err(failed)?.take(size);
        let mut left = size;
        while left > 0 {
            let filled = self.piece.len();
            let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE - filled);
            self.piece.resize(filled + room, 0);
            let count = file.read(&mut self.piece[filled..]).map_err(failed)?;
            self.piece.truncate(filled + count);
            if count == 0 {
                let reason = "the file became shorter while it was read";
                return Err(failed(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason)));
            }
            left -= count as u64;
            self.done += count as u64;
            if self.piece.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), GuestError> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if piece.is_empty() { Ok(()) } else { (self.sink)(piece, self.done) }
    }
}

fn header(path: &[u8], link: &[u8], kind: u8, mode: u32, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    octal(&mut block[100..108], u64::from(mode));
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    if size < 1 << 33 {
        octal(&mut block[124..136], size);
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    octal(&mut block[136..148], 0);
    block[156] = kind;
    block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[265..269].copy_from_slice(b"root");
    block[297..301].copy_from_slice(b"root");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// Digits with zeros before and a NUL after.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    field[..width].copy_from_slice(&digits.as_bytes()[digits.len() - width..]);
    field[width] = 0;
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::process::{Limits, Spec, Stdin, run};

    /// GNU tar is the judge of the format.
    #[tokio::test]
    async fn tar_unpacks_every_kind_of_name_mode_and_content() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, vec![7; 700_001]).unwrap();
        let long = format!("{}/{}", "d".repeat(255), "f".repeat(255));
        let odd = ["-rf", "new\nline", " space ", "ünï", "quote'\"\\", "*", "@x", &long];
        let mut entries = vec![Entry { path: "d".repeat(255).into(), mode: 0o711, content: Content::Directory }];
        for (index, name) in odd.iter().enumerate() {
            entries.push(Entry { path: name.into(), mode: 0o640, content: Content::Bytes(vec![b'x'; index * 300]) });
        }
        let raw = Path::new(OsStr::from_bytes(b"\xff\xfe")).to_owned();
        entries.push(Entry { path: raw.clone(), mode: 0o755, content: Content::File { path: source, bytes: 700_001 } });
        entries.push(Entry { path: "link".into(), mode: 0o777, content: Content::Link("l".repeat(200).into()) });
        check(&entries).unwrap();
        let (mut bytes, mut last) = (Vec::new(), 0);
        write(&entries, "seal", &mut |piece, done| {
            bytes.extend(piece);
            last = done;
            Ok(())
        })
        .unwrap();
        assert_eq!(last, size(&entries));
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        let spec = Spec::new("tar").args(["-xpof", "-", "-C"]).arg(&target).stdin(Stdin::Bytes(bytes));
        let unpacked = run(&spec, &Limits::default(), &mut |_, _| {}).await.unwrap();
        assert!(unpacked.stderr.is_empty(), "{:?}", unpacked.stderr);
        for (index, name) in odd.iter().enumerate() {
            assert_eq!(fs::read(target.join(name)).unwrap(), vec![b'x'; index * 300], "{name:?}");
            assert_eq!(target.join(name).metadata().unwrap().permissions().mode() & 0o777, 0o640);
        }
        assert_eq!(fs::read(target.join(raw)).unwrap(), vec![7; 700_001]);
        assert_eq!(fs::read_link(target.join("link")).unwrap().as_os_str().len(), 200);
        assert!(target.join("seal").exists());
    }

    #[test]
    fn refuses_paths_that_leave_the_target() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a\0b"] {
            let entry = Entry { path: path.into(), mode: 0o644, content: Content::Directory };
            assert!(check(&[entry]).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_file_that_shrinks_stops_the_upload() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content = Content::File { path: file.path().to_owned(), bytes: 10 };
        let entry = Entry { path: "x".into(), mode: 0o644, content };
        assert!(matches!(write(&[entry], "seal", &mut |_, _| Ok(())), Err(GuestError::Local { .. })));
    }
}

//! Files without a name until they are whole: whatever kills the writer, the kernel takes them back.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

use crate::random;

/// A file that nobody sees before it has its name.
#[derive(Debug)]
pub struct Unnamed {
    file: File,
    directory: PathBuf,
    /// On file systems without unnamed files: a hidden name, removed again unless the file gets its real one.
    hidden: Option<PathBuf>,
}

impl Unnamed {
    /// A new file, readable by all, on the file system of `target`'s directory.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, directory, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => Ok(Self { file: file.into(), directory: directory.to_owned(), hidden: None }),
            // NFS, FAT, and kernels that do not know the flag and see a directory opened for writing.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::hidden(directory),
            Err(error) => Err(error.into()),
        }
    }

    fn hidden(directory: &Path) -> io::Result<Self> {
        let path = hidden_name(directory);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file, directory: directory.to_owned(), hidden: Some(path) })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path under which another program of this user can open the file while this one runs.
    pub fn path(&self) -> PathBuf {
        self.hidden.clone().unwrap_or_else(|| format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()).into())
    }

    /// Syncs the file and gives it its name; what had the name before is replaced. The directory is synced too.
    pub fn place(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match &self.hidden {
            Some(hidden) => fs::rename(hidden, target)?,
            None => match self.link(target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.replace(target)?,
                done => done?,
            },
        }
        self.hidden = None;
        File::open(&self.directory)?.sync_all()
    }

    fn link(&self, target: &Path) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, self.path(), CWD, target, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// A link never replaces and a rename needs a name: for this moment the whole file has one.
    fn replace(&self, target: &Path) -> io::Result<()> {
        let beside = hidden_name(&self.directory);
        self.link(&beside)?;
        fs::rename(&beside, target).inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = fs::remove_file(hidden);
        }
    }
}

fn hidden_name(directory: &Path) -> PathBuf {
    directory.join(format!(".kiln-{}.part", &random::nonce()[..8]))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_no_name_before_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("disk");
        let unnamed = Unnamed::beside(&target).unwrap();
        unnamed.file().write_all(b"half").unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
        assert_eq!(fs::read(unnamed.path()).unwrap(), b"half");
        unnamed.place(&target).unwrap();
        assert_eq!(names(directory.path()), ["disk"]);
    }

    #[test]
    fn an_earlier_file_is_replaced_and_a_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("disk");
        for text in ["first", "second"] {
            let unnamed = Unnamed::beside(&target).unwrap();
            unnamed.file().write_all(text.as_bytes()).unwrap();
            unnamed.place(&target).unwrap();
        }
        assert_eq!(fs::read(&target).unwrap(), b"second");
        let other = directory.path().join("other");
        fs::create_dir(&other).unwrap();
        Unnamed::beside(&other).unwrap().place(&other).unwrap_err();
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn without_unnamed_files_the_hidden_name_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        drop(Unnamed::hidden(directory.path()).unwrap());
        assert_eq!(names(directory.path()), [""; 0]);
        let unnamed = Unnamed::hidden(directory.path()).unwrap();
        unnamed.place(&directory.path().join("disk")).unwrap();
        assert_eq!(names(directory.path()), ["disk"]);
    }
}

//! What can go wrong with a disk.

use std::{io, path::PathBuf};

use crate::qcow2::header::Refusal;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the disk `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the disk `{}` is not acceptable", path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: Refusal,
    },
    #[error("the qcow2 `{}` is not as kiln seals it, so it cannot be stored as segments; bake it again", path.display())]
    NotSealed { path: PathBuf },
    #[error("the disk `{}` has no bytes; it is not a disk", path.display())]
    Empty { path: PathBuf },
    #[error("cannot read the guest disk at byte {offset}")]
    Read {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot write `{}`{}", path.display(), space_hint(source))]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` already exists; an image is never overwritten, remove it first", path.display())]
    Exists { path: PathBuf },
    #[error("zstd cannot compress the chunk at byte {offset}")]
    Compress {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error("chunk {chunk} of the sealed image does not have its digest; the file was altered, seal or fetch it again")]
    Altered { chunk: u64 },
    #[error("sealing stopped: a worker thread panicked; this is a defect of kiln")]
    Panicked,
    #[error("cancelled")]
    Cancelled,
}

fn space_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::StorageFull {
        ": the disk is full, free space and run the build again"
    } else {
        ""
    }
}

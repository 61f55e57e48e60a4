//! The disk of a guest as bytes: a raw file, or a qcow2 overlay on a base, read without copying and without guessing.
//!
//! imago finds where the bytes lie; extents that are stored plainly are then read straight from the file by as many
//! threads as want to, holes are never read, and compressed clusters go through imago.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping, StorageOpenOptions, qcow2::Qcow2,
};

use crate::{
    Error, FileBytes, ReadAt, Result,
    qcow2::{
        canonical::SECTOR,
        header::{self, Compression, Limits},
        image::{self, Image},
    },
};

/// How the bytes of a disk file are laid out. Always said, never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

/// A disk file and its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    pub path: PathBuf,
    pub format: DiskFormat,
}

impl DiskFile {
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), format: DiskFormat::Raw }
    }

    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), format: DiskFormat::Qcow2 }
    }
}

/// A disk as the guest sees it, for reading. Nobody may write to its files meanwhile.
#[derive(Debug)]
pub struct GuestDisk {
    /// The overlay first, the base last.
    layers: Vec<Layer>,
    size: u64,
    /// Read as zeros whatever the layers hold; in rising order, apart from each other.
    blank: Vec<Range<u64>>,
}

/// Where a run of guest bytes lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All zeros, stored nowhere.
    Hole,
    /// Plainly in the file of a layer.
    Stored { layer: usize, offset: u64 },
    /// In a layer, compressed.
    Encoded { layer: usize },
}

#[derive(Debug)]
enum Layer {
    Raw(FileBytes),
    Qcow2 {
        file: FileBytes,
        image: Box<FormatAccess<imago::file::File>>,
    },
    /// Written with zstd compression, which imago does not read.
    Zstd {
        file: Arc<FileBytes>,
        image: Box<Image>,
    },
}

/// What one layer says about a run of guest bytes.
enum Piece {
    Zero,
    /// Ask the layer below.
    Below,
    Stored(u64),
    Encoded,
}

impl GuestDisk {
    /// Opens `layers`, the overlay first and the base last; what their headers say about backing files is ignored.
    /// The header of the last layer must pass [`header::inspect`].
    pub fn open(layers: &[DiskFile]) -> Result<Self> {
        let last = layers.len().saturating_sub(1);
        let opened: Vec<Layer> =
            layers.iter().enumerate().map(|(at, layer)| Layer::open(layer, at == last)).collect::<Result<_>>()?;
        // Raw files of odd length read as if filled up to a whole sector, as QEMU does it.
        let size = opened.first().map_or(0, Layer::size).next_multiple_of(SECTOR);
        if size == 0 {
            let path = layers.first().map(|layer| layer.path.clone()).unwrap_or_default();
            return Err(Error::Empty { path });
        }
        Ok(Self { layers: opened, size, blank: Vec::new() })
    }

    /// The same disk with zeros in place of these bytes, for free space whose old content is nobody's.
    #[must_use]
    pub fn blanked(self, mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| range.start);
        let mut blank: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match blank.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => blank.push(range),
            }
        }
        Self { blank, ..self }
    }

    /// Where the bytes from `offset` lie, and for how many of the next `limit` bytes that holds (at least one).
    pub fn extent(&self, offset: u64, limit: u64) -> io::Result<(Extent, u64)> {
        let mut length = limit.min(self.size.saturating_sub(offset)).max(1);
        let next = self.blank.partition_point(|range| range.end <= offset);
        match self.blank.get(next) {
            Some(range) if range.start <= offset => return Ok((Extent::Hole, length.min(range.end - offset))),
            Some(range) => length = length.min(range.start - offset),
            None => {}
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let (piece, run) = layer.piece(offset, length)?;
            length = run.clamp(1, length);
            match piece {
                Piece::Zero => return Ok((Extent::Hole, length)),
                Piece::Stored(at) => return Ok((Extent::Stored { layer: index, offset: at }, length)),
                Piece::Encoded => return Ok((Extent::Encoded { layer: index }, length)),
                Piece::Below => {}
            }
        }
        Ok((Extent::Hole, length))
    }

    /// Whether `length` bytes from `offset` are stored nowhere. `false` promises nothing.
    pub fn is_hole(&self, offset: u64, length: u64) -> io::Result<bool> {
        let mut at = offset;
        let end = offset.saturating_add(length).min(self.size);
        while at < end {
            match self.extent(at, end - at)? {
                (Extent::Hole, run) => at += run,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl ReadAt for GuestDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (extent, run) = self.extent(at, rest.len() as u64)?;
            let (piece, others) = rest.split_at_mut(usize::try_from(run).unwrap_or(usize::MAX).min(rest.len()));
            match extent {
                Extent::Hole => piece.fill(0),
                Extent::Stored { layer, offset } => self.layers[layer].read_stored(offset, piece)?,
                Extent::Encoded { layer } => self.layers[layer].read_encoded(at, piece)?,
            }
            at += run;
            rest = others;
        }
        Ok(())
    }

    fn hole(&self, offset: u64) -> io::Result<u64> {
        let rest = self.size.saturating_sub(offset);
        if rest == 0 {
            return Ok(0);
        }
        match self.extent(offset, rest)? {
            (Extent::Hole, run) => Ok(run),
            _ => Ok(0),
        }
    }
}

impl Layer {
    fn open(disk: &DiskFile, bottom: bool) -> Result<Self> {
        let path = disk.path.as_path();
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = FileBytes::new(File::open(path).map_err(failed)?).map_err(failed)?;
        if disk.format == DiskFormat::Raw {
            return Ok(Self::Raw(file));
        }
        if bottom {
            let header = header::inspect(&file, Limits::default())
                .map_err(|source| Error::Refused { path: path.to_owned(), source })?;
            if header.compression == Compression::Zstd {
                let file = Arc::new(file);
                let image = Image::open(file.clone(), Limits::default())
                    .map_err(|source| Error::Refused { path: path.to_owned(), source })?;
                return Ok(Self::Zstd { file, image: Box::new(image) });
            }
        }
        Ok(Self::Qcow2 { image: Box::new(open_with_imago(path).map_err(failed)?), file })
    }

    fn size(&self) -> u64 {
        match self {
            Self::Raw(file) => file.size(),
            Self::Qcow2 { image, .. } => image.size(),
            Self::Zstd { image, .. } => image.size(),
        }
    }

    fn piece(&self, offset: u64, length: u64) -> io::Result<(Piece, u64)> {
        let inside = length.min(self.size().saturating_sub(offset));
        if inside == 0 {
            // A layer that is shorter than the one above reads as zeros behind its end.
            return Ok((Piece::Zero, length));
        }
        match self {
            Self::Raw(file) => Ok(raw_piece(file.file(), offset, inside)),
            Self::Qcow2 { image, .. } => {
                let (mapping, run) = image.get_shallow_mapping(offset, inside)?;
                let piece = match mapping {
                    ShallowMapping::Raw { offset, .. } => Piece::Stored(offset),
                    ShallowMapping::Zero { explicit: true, .. } => Piece::Zero,
                    ShallowMapping::Zero { explicit: false, .. } | ShallowMapping::Eof { .. } => Piece::Below,
                    ShallowMapping::Special { .. } => Piece::Encoded,
                    other => return Err(io::Error::other(format!("a mapping kiln did not ask for: {other:?}"))),
                };
                Ok((piece, run))
            }
            Self::Zstd { image, .. } => {
                let (cluster, run) = image.cluster(offset)?;
                let piece = match cluster {
                    image::Cluster::Unallocated => Piece::Below,
                    image::Cluster::Zero => Piece::Zero,
                    image::Cluster::Plain { offset } => Piece::Stored(offset),
                    image::Cluster::Compressed { .. } => Piece::Encoded,
                };
                Ok((piece, run.min(inside)))
            }
        }
    }

    fn read_stored(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = match self {
            Self::Raw(file) | Self::Qcow2 { file, .. } => file,
            Self::Zstd { file, .. } => file.as_ref(),
        };
        // A last cluster or sector may be cut short by the end of the file; the rest reads as zeros.
        let stored = usize::try_from(file.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        file.read_at(offset, &mut buffer[..stored])?;
        buffer[stored..].fill(0);
        Ok(())
    }

    fn read_encoded(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.read_at(offset, buffer),
            Self::Qcow2 { image, .. } => image.read(buffer, offset),
            Self::Zstd { image, .. } => image.read_at(offset, buffer),
        }
    }
}

/// Neither a backing file nor a data file is ever opened because a header says so.
fn open_with_imago(path: &Path) -> io::Result<FormatAccess<imago::file::File>> {
    let storage = imago::file::File::from_open_file(File::open(path)?, StorageOpenOptions::new())?;
    let image = Qcow2::<imago::file::File>::builder(storage)
        .backing(None)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())?;
    if image.requires_external_data_file() {
        return Err(io::Error::other("the image needs an external data file, which kiln never opens"));
    }
    Ok(FormatAccess::new(image))
}

/// Asks the host file system for data and holes. One that cannot say gets everything read.
fn raw_piece(file: &File, offset: u64, length: u64) -> (Piece, u64) {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => (Piece::Zero, length.min(data - offset)),
        Ok(_) => {
            let hole = seek(file, SeekFrom::Hole(offset)).unwrap_or(u64::MAX);
            (Piece::Stored(offset), length.min(hole.saturating_sub(offset).max(1)))
        }
        // No data from here to the end.
        Err(rustix::io::Errno::NXIO) => (Piece::Zero, length),
        Err(_) => (Piece::Stored(offset), length),
    }
}

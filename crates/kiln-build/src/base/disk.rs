//! The disk of a Debian base, written as bytes: GPT, GRUB for BIOS, EFI system partition, and the root file system last.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use kiln_core::Digest;
use kiln_disk::{
    ext4::{self, Ext4Error, NewFileSystem, Tree},
    fat::{self, FatError, NewFat},
    gpt::{self, GptError, Guid, Partition},
};
use sha2::{Digest as _, Sha256};

use super::cache::{INITRD, KERNEL};

const MIB: u64 = 1 << 20;
const BIOS: std::ops::Range<u64> = MIB..2 * MIB;
const ESP: std::ops::Range<u64> = 2 * MIB..64 * MIB;
const ROOT: u64 = 64 * MIB;

/// Why the disk could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error(transparent)]
    FileSystem(#[from] Ext4Error),
    #[error("cannot write the EFI system partition")]
    Esp(#[from] FatError),
    #[error("cannot write the partition table")]
    Table(#[from] GptError),
    #[error("cannot read or write the disk and what belongs to it")]
    Io(#[from] io::Error),
    #[error("the package scripts left no usable `{what}`")]
    Missing { what: String },
}

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) size: u64,
    pub(super) digest: Digest,
    pub(super) command_line: String,
}

/// Writes `disk.raw`, `vmlinuz`, `initrd` and `packages` into `directory` from the tar archive of the file tree.
/// `time` stands for every moment of the build. `progress` gets bytes done and in all.
pub(super) fn write(
    archive: &Path,
    directory: &Path,
    time: i64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written, DiskError> {
    let archive = File::open(archive)?;
    let mut tree = Tree::read(&archive)?;
    let beside = tree.take(".kiln");
    let part = |name: &str| read(&beside, &archive, name);
    // What is mounted over these at boot; a socket or pid file of the build has no business there.
    for place in ["dev", "proc", "sys", "run"] {
        tree.empty(place);
    }
    let ids = Ids::parse(&part("ids")?);
    for (name, file) in [("vmlinuz", KERNEL), ("initrd.img", INITRD), ("packages", "packages")] {
        std::fs::write(directory.join(file), part(name)?)?;
    }

    // A quarter and 256 MiB are room for a bake that asks for no larger disk.
    let bytes = tree.bytes();
    let root = (bytes + bytes / 4 + 256 * MIB).next_multiple_of(ext4::STEP);
    let size = ROOT + root + MIB;
    let disk = File::options().read(true).write(true).create_new(true).open(directory.join("disk.raw"))?;
    disk.set_len(size)?;
    let new = NewFileSystem {
        offset: ROOT,
        bytes: root,
        uuid: ids.bytes("root")?,
        hash_seed: ids.bytes("hash-seed")?,
        time,
        label: "root".into(),
    };
    ext4::write(&new, &tree, &mut &archive, &disk, &mut |done| progress(done, bytes))?;
    disk.write_all_at(&esp(&ids, &part)?, ESP.start)?;
    let partition = |number, kind, id, name: &str, range| {
        Ok::<_, DiskError>(Partition { number, kind, id: ids.guid(id)?, name: name.into(), range })
    };
    // The numbers are those of Debian's own cloud images: the root is 1.
    let partitions = [
        partition(1, gpt::LINUX_ROOT, "root-partition", "root", ROOT..ROOT + root)?,
        partition(14, gpt::BIOS_BOOT, "bios-partition", "bios", BIOS)?,
        partition(15, gpt::EFI_SYSTEM, "esp-partition", "esp", ESP)?,
    ];
    let mut table = gpt::table(size, ids.guid("disk")?, &partitions)?;
    let grub = gpt::grub_boot_blocks(&part("boot.img")?, &part("core.img")?, BIOS.start / gpt::SECTOR);
    let (code, image) = grub.ok_or_else(|| DiskError::Missing { what: "GRUB for BIOS".into() })?;
    if image.len() as u64 > BIOS.end - BIOS.start {
        return Err(DiskError::Missing { what: "GRUB core image of less than 1 MiB".into() });
    }
    table.front[..440].copy_from_slice(&code);
    disk.write_all_at(&image, BIOS.start)?;
    disk.write_all_at(&table.front, 0)?;
    disk.write_all_at(&table.back, size - table.back.len() as u64)?;
    disk.sync_all()?;
    Ok(Written { size, digest: digest(&disk)?, command_line: format!("root=UUID={} ro", ids.text("root")?) })
}

fn esp(ids: &Ids, part: &dyn Fn(&str) -> Result<Vec<u8>, DiskError>) -> Result<Vec<u8>, DiskError> {
    let serial = u32::from_str_radix(&ids.text("esp")?.replace('-', ""), 16);
    let files = [
        ("EFI/BOOT/BOOTX64.EFI", "shimx64.efi"),
        ("EFI/BOOT/grubx64.efi", "grubx64.efi"),
        ("EFI/debian/grub.cfg", "efi-grub.cfg"),
    ];
    let read = files.iter().map(|(path, name)| Ok(((*path).to_owned(), part(name)?)));
    Ok(fat::write(&NewFat {
        label: "ESP".into(),
        serial: serial.map_err(|_| DiskError::Missing { what: "identifier of the ESP".into() })?,
        bytes: ESP.end - ESP.start,
        start: u32::try_from(ESP.start / gpt::SECTOR).unwrap_or_default(),
        files: read.collect::<Result<_, DiskError>>()?,
    })?)
}

/// A file that the package scripts left for us beside the tree.
fn read(parts: &Tree, archive: &File, name: &str) -> Result<Vec<u8>, DiskError> {
    let missing = || DiskError::Missing { what: name.to_owned() };
    let node = parts.find(&format!(".kiln/{name}")).ok_or_else(missing)?;
    let length = usize::try_from(node.bytes).map_err(|_| missing())?;
    let mut content = vec![0; length];
    archive.read_exact_at(&mut content, node.position)?;
    Ok(content)
}

/// The identifiers that `customize.sh` derived from the set of packages.
struct Ids(BTreeMap<String, String>);

impl Ids {
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> Result<&str, DiskError> {
        self.0.get(name).map(String::as_str).ok_or_else(|| DiskError::Missing { what: format!("identifier `{name}`") })
    }

    fn guid(&self, name: &str) -> Result<Guid, DiskError> {
        Guid::parse(self.text(name)?).ok_or_else(|| DiskError::Missing { what: format!("identifier `{name}`") })
    }

    /// In the order of the text, as ext4 keeps its UUID.
    fn bytes(&self, name: &str) -> Result<[u8; 16], DiskError> {
        let digits = self.text(name)?.replace('-', "");
        let number = u128::from_str_radix(&digits, 16);
        number.map(u128::to_be_bytes).map_err(|_| DiskError::Missing { what: format!("identifier `{name}`") })
    }
}

fn digest(mut disk: &File) -> io::Result<Digest> {
    io::Seek::rewind(&mut disk)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match disk.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}

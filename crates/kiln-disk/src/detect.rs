//! What the first bytes of a file look like, used only to refuse a file that is not what it was said to be.
//!
//! Never to choose a format: a guest can write any bytes at the start of its raw disk.

/// A container format with a signature at the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    Qcow2,
    Qcow1,
    Vmdk,
    Vhdx,
    Vdi,
    Iso9660,
    Zstd,
    Gzip,
    Xz,
    Html,
}

impl Signature {
    /// The name people know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "a qcow2 image",
            Self::Qcow1 => "a qcow version 1 image",
            Self::Vmdk => "a VMDK image",
            Self::Vhdx => "a VHDX image",
            Self::Vdi => "a VDI image",
            Self::Iso9660 => "an ISO 9660 image",
            Self::Zstd => "zstd-compressed",
            Self::Gzip => "gzip-compressed",
            Self::Xz => "xz-compressed",
            Self::Html => "an HTML page",
        }
    }
}

/// Recognises the formats that are commonly mistaken for a raw or qcow2 disk. `None` promises nothing.
pub fn detect(first: &[u8]) -> Option<Signature> {
    const STARTS: [(&[u8], Signature); 8] = [
        (b"KDMV", Signature::Vmdk),
        (b"# Disk DescriptorFile", Signature::Vmdk),
        (b"vhdxfile", Signature::Vhdx),
        (b"\x28\xb5\x2f\xfd", Signature::Zstd),
        (b"\x1f\x8b", Signature::Gzip),
        (b"\xfd7zXZ\0", Signature::Xz),
        (b"<!DOCTYPE", Signature::Html),
        (b"<html", Signature::Html),
    ];
    if first.starts_with(b"QFI\xfb") {
        let version = first.get(4..8);
        return Some(if version == Some(&[0, 0, 0, 1]) { Signature::Qcow1 } else { Signature::Qcow2 });
    }
    if first.get(0x40..0x44) == Some(b"\x7f\x10\xda\xbe") {
        return Some(Signature::Vdi);
    }
    if first.get(0x8001..0x8006) == Some(b"CD001") {
        return Some(Signature::Iso9660);
    }
    STARTS.iter().find(|(start, _)| first.starts_with(start)).map(|(_, signature)| *signature)
}

/// A file said to be a raw disk must not begin like a container: either the template is wrong, or something wrote
/// a header to make a tool that guesses open another file. The text says which, for an error message.
pub fn refuse_as_raw(first: &[u8]) -> Option<String> {
    let signature = detect(first)?;
    Some(format!(
        "it is declared raw but begins like {}; declare its real format, or wipe the first sector if it really is raw",
        signature.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_raw_disk_on_which_the_guest_wrote_a_qcow2_header() {
        let mut disk = vec![0; 512];
        disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        assert_eq!(detect(&disk), Some(Signature::Qcow2));
        assert!(refuse_as_raw(&disk).is_some_and(|reason| reason.contains("qcow2")));
    }

    #[test]
    fn lets_a_boot_sector_pass_as_raw() {
        let mut disk = vec![0; 512];
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(refuse_as_raw(&disk), None);
        assert_eq!(refuse_as_raw(&[]), None);
    }
}

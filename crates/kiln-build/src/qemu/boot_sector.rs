//! A boot sector of our own: the smallest guest that does work, to see whether an accelerator runs guests at all.
//!
//! It says `K` on QEMU's debug port, computes for a fixed count of rounds, says `O` and powers the machine off through
//! QEMU's exit device. 16-bit code, assembled by hand:
//!
//! ```text
//! 7c00  fa                 cli
//! 7c01  31 c0              xor  ax, ax
//! 7c03  8e d0              mov  ss, ax
//! 7c05  bc 00 60           mov  sp, 0x6000    ; not the page of the code, or each push has it translated anew
//! 7c08  b0 4b              mov  al, 'K'
//! 7c0a  e6 e9              out  0xe9, al
//! 7c0c  66 b9 xx xx xx xx  mov  ecx, ROUNDS
//! 7c12  66 50        round: push eax
//! 7c14  66 01 c8           add  eax, ecx
//! 7c17  66 5b              pop  ebx
//! 7c19  66 31 d8           xor  eax, ebx
//! 7c1c  66 49              dec  ecx
//! 7c1e  75 f2              jnz  round
//! 7c20  b0 4f              mov  al, 'O'
//! 7c22  e6 e9              out  0xe9, al
//! 7c24  b0 10              mov  al, 0x10
//! 7c26  e6 f4              out  0xf4, al     ; QEMU exits with (0x10 << 1) | 1
//! 7c28  f4           halt:  hlt
//! 7c29  eb fd              jmp  halt
//! ```

/// Rounds of the loop: a quarter of a second of emulation on the reference machine.
pub(super) const ROUNDS: u32 = 20_000_000;
/// What the guest says before and after its work.
pub(super) const SAYS: &[u8] = b"KO";
/// The exit status that only our code causes.
pub(super) const EXIT: i32 = (0x10 << 1) | 1;
/// `SeaBIOS` wants more than one sector to call it a disk.
pub(super) const DISK_BYTES: u64 = 1 << 20;

const CODE: [u8; 43] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x60, 0xb0, b'K', 0xe6, 0xe9, 0x66, 0xb9, 0, 0, 0, 0, 0x66, 0x50, 0x66,
    0x01, 0xc8, 0x66, 0x5b, 0x66, 0x31, 0xd8, 0x66, 0x49, 0x75, 0xf2, 0xb0, b'O', 0xe6, 0xe9, 0xb0, 0x10, 0xe6, 0xf4,
    0xf4, 0xeb, 0xfd,
];
/// Where `ROUNDS` stands in the code.
const COUNT_AT: usize = 14;

/// The 512 bytes.
pub(super) const fn boot_sector(rounds: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    let mut index = 0;
    while index < CODE.len() {
        sector[index] = CODE[index];
        index += 1;
    }
    let count = rounds.to_le_bytes();
    let mut index = 0;
    while index < count.len() {
        sector[COUNT_AT + index] = count[index];
        index += 1;
    }
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_listing() {
        let listing: Vec<(usize, Vec<u8>)> = include_str!("boot_sector.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! 7c"))
            .map(|line| {
                let (offset, rest) = line.split_at(2);
                let bytes = rest.trim_start().split("  ").next().unwrap_or_default();
                let byte = |text: &str| u8::from_str_radix(text, 16).unwrap_or(0);
                (usize::from_str_radix(offset, 16).unwrap(), bytes.split(' ').map(byte).collect())
            })
            .collect();
        assert_eq!(listing.len(), 19);
        let sector = boot_sector(0);
        for (offset, bytes) in &listing {
            assert_eq!(&sector[*offset..offset + bytes.len()], bytes.as_slice(), "at {offset:#x}");
        }
        let (last, bytes) = listing.last().unwrap();
        assert_eq!(last + bytes.len(), CODE.len());
        assert_eq!(boot_sector(0x0102_0304)[COUNT_AT..COUNT_AT + 4], [4, 3, 2, 1]);
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }
}

//! Randomness from the operating system: nonces and build ids.

use std::{fmt::Write as _, time::SystemTime};

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes.
///
/// # Panics
/// Never on a Linux that has finished booting: the kernel's generator does not fail for small requests.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut buffer = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut buffer[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
    buffer
}

/// A fresh 128-bit number as 32 lower-case hex digits.
pub fn nonce() -> String {
    hex(&bytes::<16>())
}

/// The id of a build: `b-<hex seconds since 1970>-<8 random hex digits>`. Ids sort by time.
pub fn build_id(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("b-{seconds:08x}-{}", hex(&bytes::<4>()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_second_differ_and_sort_by_time() {
        let early = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        let late = early + std::time::Duration::from_secs(1);
        assert_ne!(build_id(early), build_id(early));
        assert!(build_id(early) < build_id(late));
        assert_eq!(nonce().len(), 32);
    }
}

//! A server between a client and a `kiln serve`, which lies about some addresses.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Lie {
    Truth,
    /// An answer of no length that does not end.
    Endless,
    /// A head that does not end.
    GiantHead,
    /// One bit is another.
    Flipped,
    /// The connection ends in the middle.
    Cut,
    /// Something else of the right length.
    Garbage,
    /// It is at another address.
    Elsewhere,
    /// A part was asked for, and another comes.
    OtherRange,
    /// A part was asked for, and everything comes.
    WholeForRange,
    /// The manifest has a petabyte.
    GiantManifest,
}

/// Runs until the test ends.
pub(crate) struct Liar {
    pub(crate) url: String,
}

impl Liar {
    /// Passes on what `host` answers, but lies where an address holds `path`.
    pub(crate) fn start(host: String, lie: Lie, path: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let host = host.clone();
                // A client that has heard enough goes away.
                thread::spawn(move || drop(answer(stream, &host, lie, path)));
            }
        });
        Self { url }
    }
}

fn answer(mut client: TcpStream, host: &str, lie: Lie, path: &str) -> std::io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(client.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let address = head.split(' ').nth(1).unwrap_or_default();
    let ranged = head.to_lowercase().contains("\r\nrange:");
    let lied_about = address.contains(path) && (ranged || !matches!(lie, Lie::OtherRange | Lie::WholeForRange));
    let lie = if lied_about { lie } else { Lie::Truth };
    let head = if lie == Lie::WholeForRange { head.replace("\r\nrange:", "\r\nx-range:") } else { head.clone() };
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut server = TcpStream::connect(host)?;
    server.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes)?;
    let body = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
    let noise = vec![b'x'; 1 << 20];
    match lie {
        Lie::Truth | Lie::WholeForRange => client.write_all(&bytes),
        Lie::Endless => {
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n\"")?;
            loop {
                client.write_all(&noise)?;
            }
        }
        Lie::GiantHead => {
            client.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
            loop {
                client.write_all(&noise)?;
            }
        }
        Lie::Flipped => {
            let middle = body + (bytes.len() - body) / 2;
            bytes[middle] ^= 1;
            client.write_all(&bytes)
        }
        Lie::Cut => client.write_all(&bytes[..body + (bytes.len() - body) / 2]),
        Lie::Garbage => {
            bytes[body..].fill(b'z');
            client.write_all(&bytes)
        }
        Lie::OtherRange => {
            bytes[body..].rotate_left(1);
            client.write_all(&bytes)
        }
        Lie::Elsewhere => client.write_all(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        Lie::GiantManifest => {
            let text = String::from_utf8_lossy(&bytes[body..]).into_owned();
            let mut shown: serde_json::Value = serde_json::from_str(&text).unwrap();
            shown["manifest"]["size"] = (1_u64 << 50).into();
            let text = shown.to_string();
            write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
        }
    }
}

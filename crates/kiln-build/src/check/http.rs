//! As much of HTTP/1.1 as a check needs: one GET, the status, the body.

/// Where a URL points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// The `Host` header: with the port where it is not the scheme's own.
    authority: String,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let broken = |why: &str| format!("`{text}` is not a URL that can be checked: {why}");
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(broken("it must begin with `http://` or `https://`")),
        };
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(broken("it holds a blank or a control character"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| broken("its port is not a number up to 65535"))?)
            }
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('@') {
            return Err(broken("it names no host"));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self { tls, host: host.to_owned(), port, authority: authority.to_owned(), path: format!("{slash}{path}") })
    }

    pub(super) fn request(&self) -> Vec<u8> {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kiln\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.path, self.authority
        )
        .into_bytes()
    }
}

/// Reads a whole response. Interim responses (1xx) are skipped.
pub(super) fn parse(bytes: &[u8]) -> Result<Answer, String> {
    let mut rest = bytes;
    loop {
        let end = find(rest, b"\r\n\r\n").ok_or_else(|| nonsense(rest))?;
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let body = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first
            .strip_prefix("HTTP/")
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse::<u16>().ok())
            .ok_or_else(|| nonsense(rest))?;
        if (100..200).contains(&status) && status != 101 {
            rest = body;
            continue;
        }
        let header = |name: &str| {
            lines.clone().find_map(|line| {
                line.split_once(':')
                    .filter(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.trim())
            })
        };
        let chunked =
            header("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"));
        let body = if chunked {
            dechunk(body)
        } else {
            let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(usize::MAX);
            body[..body.len().min(length)].to_vec()
        };
        return Ok(Answer { status, body });
    }
}

/// What arrived of a chunked body; a cut end is what a limit leaves.
fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = find(rest, b"\r\n") {
        let line = String::from_utf8_lossy(&rest[..end]);
        let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16) else { break };
        rest = &rest[end + 2..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        if size == 0 || size.saturating_add(2) > rest.len() {
            break;
        }
        rest = &rest[size + 2..];
    }
    body
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn nonsense(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "the connection was closed without an answer".to_owned();
    }
    let start: String = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).escape_debug().collect();
    format!("the answer is not HTTP; it begins `{start}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_url_apart() {
        let parts = |text: &str| Url::parse(text).map(|url| (url.tls, url.host, url.port, url.path));
        let expect = |tls, host: &str, port, path: &str| Ok((tls, host.to_owned(), port, path.to_owned()));
        assert_eq!(parts("http://localhost/"), expect(false, "localhost", 80, "/"));
        assert_eq!(parts("http://localhost:8080"), expect(false, "localhost", 8080, "/"));
        assert_eq!(parts("https://a.b/x?y=1#z"), expect(true, "a.b", 443, "/x?y=1"));
        assert_eq!(parts("http://[::1]:81?q"), expect(false, "::1", 81, "/?q"));
        for text in [
            "",
            "localhost",
            "ftp://a/",
            "http://",
            "http://:80/",
            "http://a:99999/",
            "http://a/ b",
            "http://a/\r\nX: y",
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn reads_plain_and_chunked_answers() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellojunk").unwrap();
        assert_eq!((plain.status, plain.body.as_slice()), (200, b"hello".as_slice()));
        let chunked =
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), Answer { status: 404, body: b"hello!".to_vec() });
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\n\r\n";
        assert_eq!(parse(interim).unwrap().status, 204);
    }

    #[test]
    fn no_cut_of_an_answer_panics_or_passes_for_another_status() {
        let whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab\r\n0\r\n\r\n";
        for end in 0..whole.len() {
            if let Ok(answer) = parse(&whole[..end]) {
                assert_eq!(answer.status, 200);
            }
        }
        assert!(parse(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap_err().contains("SSH-2.0"));
        assert!(parse(b"").unwrap_err().contains("closed"));
    }
}

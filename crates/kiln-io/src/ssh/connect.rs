//! From an address to a logged-in session: each stage fails in its own words, the host key is checked before the login.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use ssh2::{DisconnectCode, ErrorCode, MethodType, Session};

use super::Target;
use crate::{
    guest::{GuestError, Stage},
    keys::fingerprint,
};

/// Preferences, first wins. The pseudo method switches on the answer to the Terrapin attack; CBC ciphers and SHA-1 are left out.
const METHODS: [(MethodType, &str); 7] = [
    (
        MethodType::Kex,
        "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,diffie-hellman-group16-sha512,diffie-hellman-group14-sha256,kex-strict-c-v00@openssh.com",
    ),
    (MethodType::HostKey, "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,rsa-sha2-512,rsa-sha2-256"),
    (MethodType::CryptCs, CIPHERS),
    (MethodType::CryptSc, CIPHERS),
    (MethodType::MacCs, MACS),
    (MethodType::MacSc, MACS),
    (MethodType::CompCs, "none"),
];
const CIPHERS: &str =
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr";
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512";
/// Unanswered bytes for this long mean that the connection is gone.
const USER_TIMEOUT: Duration = Duration::from_mins(1);
/// Seconds of silence after which the other side is asked for a sign of life.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(15);

/// A session that is logged in, in blocking mode, with its socket.
pub(super) struct Connected {
    pub(super) session: Session,
    pub(super) socket: TcpStream,
}

/// Connects, unless it is `connected` already, and logs in within the target's time for one attempt. Blocks.
pub(super) fn connect(target: &Target, connected: Option<TcpStream>) -> Result<Connected, GuestError> {
    let deadline = Instant::now() + target.attempt;
    let socket = connected.map_or_else(|| dial(target, deadline), Ok)?;
    listen_for_banner(target, &socket, deadline)?;
    let mut session = Session::new().map_err(|error| failure(target, Stage::Handshake, &error))?;
    for (kind, methods) in METHODS {
        session.method_pref(kind, methods).map_err(|error| failure(target, Stage::Handshake, &error))?;
    }
    let stream = socket.try_clone().map_err(|error| failure(target, Stage::Handshake, &error))?;
    session.set_tcp_stream(stream);
    session.set_timeout(milliseconds(deadline));
    session.handshake().map_err(|error| failure(target, Stage::Handshake, &error))?;
    pinned(target, &session)?;
    log_in(target, &session, deadline)?;
    session.set_keepalive(true, u32::try_from(KEEPALIVE.as_secs()).unwrap_or(15));
    Ok(Connected { session, socket })
}

fn dial(target: &Target, deadline: Instant) -> Result<TcpStream, GuestError> {
    let failed = |error: io::Error| failure(target, Stage::Listener, &error);
    let addresses: Vec<SocketAddr> = (target.host.as_str(), target.port).to_socket_addrs().map_err(failed)?.collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)) {
            Ok(socket) => {
                socket.set_nodelay(true).map_err(failed)?;
                let timeout = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
                let set = rustix::net::sockopt::set_tcp_user_timeout(&socket, timeout);
                set.map_err(|error| failed(error.into()))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// A forwarded port accepts before the guest does, so only the server's first words prove that one is there.
fn listen_for_banner(target: &Target, socket: &TcpStream, deadline: Instant) -> Result<(), GuestError> {
    let reason = match socket.set_read_timeout(Some(left(deadline))).and_then(|()| socket.peek(&mut [0; 4])) {
        Ok(0) => "the connection was closed at once".to_owned(),
        Ok(_) => return socket.set_read_timeout(None).map_err(|error| failure(target, Stage::Banner, &error)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            format!("silent for {:?}", target.attempt)
        }
        Err(error) => error.to_string(),
    };
    Err(GuestError::Connect { address: target.address(), stage: Stage::Banner, reason })
}

/// Compares the raw key; nothing is sent to a stranger, and there is no way to accept one.
fn pinned(target: &Target, session: &Session) -> Result<(), GuestError> {
    let found = session.host_key().map(|(blob, _)| blob.to_vec()).unwrap_or_default();
    if found == target.host_key.blob {
        return Ok(());
    }
    let _ =
        session.disconnect(Some(DisconnectCode::HostKeyNotVerifiable), "host key differs from the pinned one", None);
    Err(GuestError::HostKey {
        address: target.address(),
        expected: target.host_key.fingerprint(),
        found: fingerprint(&found),
    })
}

fn log_in(target: &Target, session: &Session, deadline: Instant) -> Result<(), GuestError> {
    session.set_timeout(milliseconds(deadline));
    let line = target.login.public.line();
    let answer = session.userauth_pubkey_memory(&target.user, Some(&line), target.login.private.reveal(), None);
    match answer {
        Ok(()) if session.authenticated() => Ok(()),
        // -18: authentication failed, -19: the key was not accepted.
        Err(error) if !matches!(error.code(), ErrorCode::Session(-18 | -19)) => {
            Err(failure(target, Stage::Handshake, &error))
        }
        _ => Err(GuestError::Login { address: target.address(), user: target.user.clone() }),
    }
}

fn failure(target: &Target, stage: Stage, reason: &dyn std::fmt::Display) -> GuestError {
    GuestError::Connect { address: target.address(), stage, reason: reason.to_string() }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn milliseconds(deadline: Instant) -> u32 {
    u32::try_from(left(deadline).as_millis()).unwrap_or(u32::MAX).max(1)
}

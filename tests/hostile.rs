//! Those who lie: a server that sends anything to `kiln pull`, and clients that send anything to `kiln serve`. Each is refused
//! with a reason, in bounded time and memory, and nothing of what was sent stays.

#![expect(clippy::disallowed_methods, reason = "tests drive programs as a user would")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod artifacts;
#[path = "hostile/liar.rs"]
mod liar;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use artifacts::{artifact, fixed};
use kiln_core::Digest;
use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::{home::Home, served::Served};
use liar::{Liar, Lie};

/// A client may take this much address space; what it is sent without end does not fit.
const CLIENT: &str = "1500000";
/// A server may have this much in memory whatever is asked of it.
const SERVER: u64 = 400 << 20;

fn published(home: &Home) -> Registry {
    let registry = Registry::open(&home.path("data/registry")).unwrap();
    for (content, version) in [("one", "1.0.0"), ("two", "1.1.0")] {
        let directory = home.path("baked");
        registry.publish(&artifact(&directory, version, content), &directory, &fixed(version), &Quiet).unwrap();
    }
    registry
}

/// `kiln` with little memory.
fn confined(home: &Home, arguments: &[&str]) -> Output {
    let kiln = home.command(arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {CLIENT}; exec \"$@\""), "sh"]).arg(kiln.get_program()).args(kiln.get_args());
    shell.env_clear().envs(kiln.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Each thread would reserve 64 MiB of addresses for itself.
    shell.env("MALLOC_ARENA_MAX", "2").output().unwrap()
}

#[test]
fn a_server_that_lies_is_refused_with_the_reason_and_nothing_of_it_stays() {
    let server = Home::apart("hostile-server");
    published(&server);
    let served = Served::new(&server, &["--listen", "127.0.0.1:0"]);
    let cases: [(Lie, &str, &str); 14] = [
        (Lie::Truth, "nothing", ""),
        (Lie::Endless, "/resolve/", "longer than any answer is"),
        (Lie::Endless, "/versions/", "longer than any answer is"),
        (Lie::Endless, "/blobs/", ""),
        (Lie::GiantHead, "/resolve/", ""),
        (Lie::Flipped, "/blobs/", ""),
        (Lie::Cut, "/blobs/", "cannot reach"),
        (Lie::Garbage, "/resolve/", ""),
        (Lie::Garbage, "/versions/", ""),
        (Lie::Garbage, "/blobs/", ""),
        (Lie::Elsewhere, "/resolve/", ""),
        (Lie::OtherRange, "/blobs/", ""),
        (Lie::WholeForRange, "/blobs/", ""),
        (Lie::GiantManifest, "/versions/", "longer than any version has"),
    ];
    thread::scope(|scope| {
        for (number, (lie, path, reason)) in cases.into_iter().enumerate() {
            let served = &served;
            scope.spawn(move || {
                let liar = Liar::start(served.host().to_owned(), lie, path);
                let home = Home::apart(&format!("hostile-client-{number}"));
                // One version is here: of the next, only frames are asked for, by ranges.
                if matches!(lie, Lie::OtherRange | Lie::WholeForRange) {
                    home.kiln(&["pull", "web@1.0.0", "--registry", &served.url]).succeeds();
                }
                let output = confined(&home, &["pull", "web@1.1.0", "--registry", &liar.url]);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let what = format!("{lie:?} at {path}: {said}");
                // The segment that the wrong range is in comes once more as a whole, and that is right.
                if matches!(lie, Lie::Truth | Lie::OtherRange) {
                    assert_eq!(output.status.code(), Some(0), "{what}");
                    home.kiln(&["registry", "verify"]).succeeds();
                    return;
                }
                assert_eq!(output.status.code(), Some(1), "{what}");
                assert!(said.starts_with("error: ") && said.contains(reason), "{what}");
                let own = Registry::open(&home.path("data/registry")).unwrap();
                assert!(own.record(&"web@1.1.0".parse().unwrap()).is_err(), "{what}");
                for blob in fs::read_dir(home.path("data/registry/blobs/sha256")).into_iter().flatten().flatten() {
                    let digest = Digest::of(&fs::read(blob.path()).unwrap()).hex();
                    assert_eq!(blob.file_name().to_string_lossy(), digest, "{what}");
                }
                // What is right goes on from there.
                home.kiln(&["pull", "web@1.1.0", "--registry", &served.url]).succeeds();
                home.kiln(&["registry", "verify"]).succeeds();
            });
        }
    });
}

/// A server for one who may publish, and that one's token.
fn guarded(name: &str) -> (Home, Served, String) {
    let server = Home::apart(name);
    published(&server);
    let tokens = server.path("tokens.toml").display().to_string();
    let token = server.kiln(&["token", "forge", "--tokens", &tokens, "--image", "web", "--allow", "publish"]);
    let token = token.succeeds().stdout.trim().to_owned();
    let served = Served::new(&server, &["--listen", "127.0.0.1:0", "--tokens", &tokens]);
    (server, served, token)
}

/// What comes back for these bytes, when nothing more is sent.
fn told(served: &Served, parts: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(served.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
    for part in parts {
        // It may have answered and closed before all was sent.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn clients_that_send_anything_are_refused_in_bounded_memory_while_others_are_served() {
    let (server, served, token) = guarded("hostile-clients");
    let digest = Digest::of(b"never sent");
    let put = |length: &str, authorization: &str| {
        format!(
            "PUT /api/v1/images/web/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}{length}\r\n\r\n"
        )
    };
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let zeros = vec![0; 1 << 20];
    let flood: Vec<&[u8]> = vec![&zeros; 200];
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or("none").to_owned();
    let after = |head: &str, parts: &[&[u8]]| status(&told(&served, &[&[head.as_bytes()], parts].concat()));

    assert_eq!(after(&put("Content-Length: 1099511627777", &bearer), &[]), "413", "more than any blob");
    assert_eq!(after(&put("Content-Length: 1099511627776", &bearer), &[]), "507", "more than the disk holds");
    assert_eq!(after(&put("Transfer-Encoding: chunked", &bearer), &[]), "411", "no length at all");
    assert_eq!(after(&put("Content-Length: -1", &bearer), &[]), "400", "a length that is none");
    assert_eq!(after(&put("Content-Length: 5\r\nContent-Length: 6", &bearer), &[b"12345"]), "400", "two lengths");
    assert_eq!(after(&put("Content-Length: 209715200", ""), &flood), "401", "nobody's flood");
    assert_eq!(after(&put("Content-Length: 209715200", &bearer), &flood), "422", "a flood of zeros");
    let question = format!("POST /api/v1/images/web/missing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{bearer}");
    let long = format!("{question}Content-Length: 209715200\r\n\r\n");
    assert_eq!(after(&long, &flood), "413", "a question without end");
    let deep = "[".repeat(1 << 20);
    let nested = format!("{question}Content-Length: {}\r\n\r\n", deep.len());
    assert_eq!(after(&nested, &[deep.as_bytes()]), "400", "nested without end");
    let ranges: Vec<_> = (0..3000).map(|at| format!("{at}-{at}")).collect();
    let ranges = format!(
        "GET /images/web/1.0.0/disk.raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes={}\r\n\r\n",
        ranges.join(",")
    );
    assert_eq!(after(&ranges, &[]), "416", "thousands of ranges");

    // Half a blob, and gone.
    let mut stream = TcpStream::connect(served.host()).unwrap();
    stream.write_all(put("Content-Length: 1000000", &bearer).as_bytes()).unwrap();
    stream.write_all(&zeros[..500_000]).unwrap();
    drop(stream);
    let unfinished = || fs::read_dir(server.path("data/registry/tmp")).unwrap().count() - 1;
    let deadline = Instant::now() + Duration::from_mins(1);
    while unfinished() > 0 {
        assert!(Instant::now() < deadline, "what was half sent stays");
        thread::sleep(Duration::from_millis(20));
    }
    server.kiln(&["registry", "verify"]).succeeds();
    let peak = served.peak_memory();
    assert!(peak < SERVER, "{peak} bytes");
}

#[test]
fn clients_that_stand_still_are_cut_and_keep_nobody_else_waiting() {
    let (_server, served, _) = guarded("hostile-slow");
    let mut slow: Vec<_> = (0..300).map(|_| TcpStream::connect(served.host()).unwrap()).collect();
    // Most send a head that never ends, the others ask and do not read.
    for (number, stream) in slow.iter_mut().enumerate() {
        let request = if number % 3 == 0 {
            "GET /images/web/1.0.0/disk.raw HTTP/1.1\r\nHost: x\r\n\r\n"
        } else {
            "GET / HTTP/1.1\r\nX: "
        };
        stream.write_all(request.as_bytes()).unwrap();
    }
    assert!(told(&served, &[b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]).ends_with("ok\n"));
    for stream in slow.iter_mut().skip(1).step_by(3) {
        // An answer that says so, or just the end.
        stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    let peak = served.peak_memory();
    assert!(peak < SERVER, "{peak} bytes");
}

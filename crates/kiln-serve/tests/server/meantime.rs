//! What changes in the meantime: tokens that are taken away, versions that retention wants, peers that hardly move.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::artifacts::{Scratch, artifact, disk, fixed, intent, select};
use crate::serving::{PUBLISHER, READER, Serving, tokens};
use kiln_io::{
    guest::Quiet,
    time::{SystemClock, TestClock, done_within},
};
use kiln_registry::{Action, KeyStore, Rules, Validity, Verdict};
use kiln_serve::{
    ServeError,
    client::{Allowed, Remote},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const PROMOTE: &str = "/api/v1/images/web/channels/stable/promote";

#[test]
fn a_token_that_is_taken_out_of_the_file_ends_there_and_then() {
    let server = Serving::new("tokens-again");
    let (path, promote) = (server.path("tokens.toml"), |version: &str| {
        server.post(PUBLISHER, PROMOTE, &format!("{{\"version\": \"{version}\"}}"))
    });
    assert_eq!(promote("1.0.0").0, 200);
    let cookie = server.path("cookies").display().to_string();
    let form = ["-d", &format!("token={PUBLISHER}"), "-c", &cookie];
    assert_eq!(server.ask(&form, "/login").0, 303);
    let page = |path| String::from_utf8(server.ask(&["-b", &cookie], path).2).unwrap();
    assert!(page("/").contains("Log out"));

    // A file that is half written, or gone, changes nothing.
    for broken in ["[[token]]\nname = ", "public = 7"] {
        fs::write(&path, broken).unwrap();
        assert_eq!(promote("1.1.0").0, 200, "{broken}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(promote("1.0.0").0, 200);
    assert!(server.log.lock().unwrap().iter().any(|line| line.contains("stay in force")));

    fs::write(&path, tokens(true).replace("\"promote\", ", "")).unwrap();
    let (status, problem) = promote("1.1.0");
    assert_eq!((status, &problem["type"]), (403, &json!("urn:kiln:problem:not-allowed")));
    fs::write(&path, "public = true\n").unwrap();
    let (status, problem) = promote("1.1.0");
    assert_eq!((status, &problem["type"]), (401, &json!("urn:kiln:problem:unknown-token")));
    assert!(!page("/").contains("Log out"), "its log-in ends with it");
    fs::write(&path, "public = false\n").unwrap();
    assert_eq!(server.json(&[], "/api/v1/images").0, 401);
    fs::write(&path, tokens(false)).unwrap();
    assert_eq!(promote("1.1.0").0, 200);
}

fn kept(verdicts: &[Verdict], version: &str) -> Option<String> {
    verdicts.iter().find(|verdict| verdict.version.version.as_str() == version).unwrap().kept.clone()
}

#[test]
fn a_version_that_is_being_downloaded_is_not_removed_and_one_that_is_gone_says_so() {
    let server = Serving::new("held");
    let directory = server.path("2.0.0");
    server.registry.publish(&artifact(&directory, "b-3", "three"), &directory, &fixed("2.0.0"), &Quiet).unwrap();
    let rules = Rules { newest: Some(1), days: None, now: 3_000 };
    let prune = || server.registry.prune(&rules, &intent("ada")).unwrap().versions;
    // Somebody asks for the whole disk and does not read it.
    let mut slow = TcpStream::connect(server.host()).unwrap();
    write!(slow, "GET /images/web/1.0.0/disk.raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = vec![0; 1];
    slow.read_exact(&mut answer).unwrap();
    let verdicts = prune();
    assert_eq!(kept(&verdicts, "1.0.0").as_deref(), Some("somebody is downloading it"));
    assert_eq!(kept(&verdicts, "1.1.0"), None);
    slow.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&disk("one")), "all of it came");

    // The rest of a version that is gone is not the rest of anything else.
    let (status, problem) = server.json(&["-r", "100-"], "/images/web/1.1.0/disk.raw");
    assert_eq!((status, &problem["type"]), (410, &json!("urn:kiln:problem:retired")));
    let here = Scratch::new("held-here");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let remote = Remote::new(&server.url, None, Arc::new(SystemClock::new()), CancellationToken::new()).unwrap();
    let pull = |name: &str| runtime.block_on(remote.pull(&select(name), Allowed::default(), &here.registry(), "bob"));
    let gone = pull("web@1.1.0");
    assert!(matches!(&gone, Err(ServeError::Refused { status: 410, .. })), "{gone:?}");
    // A pull holds what it pulls, too.
    pull("web@2.0.0").unwrap();
    let directory = server.path("3.0.0");
    server.registry.publish(&artifact(&directory, "b-4", "four"), &directory, &fixed("3.0.0"), &Quiet).unwrap();
    let verdicts = prune();
    assert_eq!(kept(&verdicts, "2.0.0").as_deref(), Some("somebody is downloading it"));
}

/// A server that treats every connection as `treat` does. It ends with the test.
fn mean(treat: impl Fn(TcpStream) + Send + Sync + 'static) -> Remote {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let treat = Arc::new(treat);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let treat = Arc::clone(&treat);
            thread::spawn(move || treat(stream));
        }
    });
    // Its pauses pass at once, so it soon stops to ask again.
    let clock = Arc::new(TestClock::at(std::time::SystemTime::UNIX_EPOCH));
    Remote::new(&url, None, clock, CancellationToken::new()).unwrap().patient(Duration::from_millis(100))
}

/// Sends `head`, then a byte now and then for ever.
fn drip(mut stream: TcpStream, head: &str) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write_all(head.as_bytes());
    while stream.write_all(b" ").is_ok() {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_that_drips_or_does_not_read_is_given_up() {
    let slow = |outcome: Result<(), ServeError>, what: &str| {
        assert!(
            matches!(&outcome, Err(ServeError::Request { problem, .. }) if problem.contains("too slowly")),
            "{what}: {outcome:?}"
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let images = |remote: Remote| runtime.block_on(async move { remote.images().await.map(drop) });
    slow(images(mean(|stream| drip(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"))), "body");
    slow(images(mean(|stream| drip(stream, "HTTP/1.1 200 OK\r\nX: "))), "head");

    // It wants every blob, and reads none of them.
    let here = Scratch::new("mean");
    let registry = here.registry();
    let baked = artifact(&here.0.join("baked"), "b-1", "one");
    registry.publish(&baked, &here.0.join("baked"), &fixed("1.0.0"), &Quiet).unwrap();
    let record = registry.record(&select("web@1.0.0")).unwrap();
    let all = registry.content(&record).unwrap().segments[2].blob.digest;
    let remote = mean(move |mut stream| {
        let mut head = [0; 32];
        stream.read_exact(&mut head).unwrap();
        if head.starts_with(b"POST") {
            let body = format!("{{\"missing\": [\"{all}\"]}}");
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.read(&mut vec![0; 1 << 16]);
        } else {
            thread::sleep(Duration::from_mins(1));
        }
    });
    slow(runtime.block_on(remote.push(&record, &registry, "ada")).map(drop), "push");
}

#[test]
fn a_state_that_would_expire_is_renewed_by_the_server_that_has_the_key() {
    let scratch = Scratch::new("renewing");
    let keys = KeyStore::new(scratch.0.join("keys"));
    keys.init("images", 1).unwrap();
    let registry = scratch.registry().trusting(keys.trust().unwrap()).signing(keys.signer().unwrap().unwrap());
    let baked = artifact(&scratch.0, "b-1", "one");
    registry.publish(&baked, &scratch.0, &fixed("1.0.0"), &Quiet).unwrap();
    let web = "web".parse().unwrap();
    // For a week of 1970, which is over.
    let week = Duration::from_hours(7 * 24);
    let early = registry.renew(&web, Some(Validity::For(week)), &intent("ada")).unwrap();
    let server = Serving::of(scratch, registry.clone(), None, None);
    let expires = || {
        let metrics = String::from_utf8(server.ask(&[], "/metrics").2).unwrap();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("kiln_state_expires_timestamp_seconds{image=\"web\"} "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse::<u64>().unwrap()
    };
    let renewed = done_within(Duration::from_mins(1), || Ok::<_, ()>(Some(expires()) > early.expires));
    assert!(renewed.unwrap(), "{:?}", server.log.lock().unwrap());
    let change = registry.log(&web).unwrap().pop().unwrap();
    assert_eq!((change.rev, change.by.as_str()), (early.rev + 1, "kiln serve"));
    assert!(
        matches!(change.action, Action::Renew { valid_for: Some(seconds) } if seconds == week.as_secs()),
        "{change:?}"
    );
    assert_eq!(expires(), change.at + week.as_secs());
}

#[test]
fn the_metrics_name_only_images_that_the_token_may_read() {
    let scratch = Scratch::new("metrics");
    let keys = KeyStore::new(scratch.0.join("keys"));
    keys.init("images", 1).unwrap();
    let registry = scratch.registry().trusting(keys.trust().unwrap()).signing(keys.signer().unwrap().unwrap());
    for (image, build) in [("web", "b-1"), ("db", "b-2")] {
        let directory = scratch.0.join(image);
        let mut baked = artifact(&directory, build, image);
        baked.image = image.parse().unwrap();
        registry.publish(&baked, &directory, &fixed("1.0.0"), &Quiet).unwrap();
        registry.renew(&baked.image, Some(Validity::For(Duration::from_hours(24))), &intent("ada")).unwrap();
    }
    let server = Serving::of(scratch, registry, Some(tokens(false)), None);
    let bearer = format!("Authorization: Bearer {READER}");
    let (status, _, text) = server.ask(&["-H", &bearer], "/metrics");
    let text = String::from_utf8(text).unwrap();
    assert!(status == 200 && text.contains("kiln_images 2\n"), "{text}");
    assert!(text.contains("{image=\"web\"}") && !text.contains("{image=\"db\"}"), "{text}");
}

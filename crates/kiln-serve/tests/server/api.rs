//! The API with curl, and the client against the server: publishing, pulling, moving channels.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use crate::artifacts::{Scratch, artifact, fixed, select};
use crate::serving::{PUBLISHER, READER, Serving, tokens};
use kiln_core::Digest;
use kiln_io::{
    guest::Quiet,
    time::{SystemClock, done_within},
};
use kiln_registry::Registry;
use kiln_serve::{
    ServeError,
    client::{Allowed, Remote},
    wire,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn remote(server: &Serving, token: Option<&str>) -> Remote {
    Remote::new(&server.url, token, Arc::new(SystemClock::new()), CancellationToken::new()).unwrap()
}

#[test]
fn lists_shows_and_resolves() {
    let server = Serving::new("lists");
    let (_, images) = server.json(&[], "/api/v1/images");
    assert_eq!(images["images"][0]["image"], "web");
    assert_eq!(images["images"][0]["newest"]["version"], "1.1.0");
    let (_, image) = server.json(&[], "/api/v1/images/web?limit=1");
    assert_eq!((&image["versions"][0]["version"], &image["next"]), (&json!("1.1.0"), &json!("1.1.0")));
    let (_, rest) = server.json(&[], "/api/v1/images/web?after=1.1.0");
    assert_eq!((rest["versions"].as_array().unwrap().len(), &rest["versions"][0]["version"]), (1, &json!("1.0.0")));
    for (path, count) in [("?limit=1", 1), ("?after=vm", 1), ("?after=web", 0), ("", 1)] {
        let (_, images) = server.json(&[], &format!("/api/v1/images{path}"));
        assert_eq!(images["images"].as_array().unwrap().len(), count, "{path}: {images}");
        assert!(images.get("next").is_none(), "there is no more: {images}");
    }
    let (_, built) = server.json(&[], "/api/v1/images/web/builds?limit=1");
    assert_eq!((&built["builds"][0]["version"], &built["next"]), (&json!("1.1.0"), &json!("1.1.0")));
    assert!(built["builds"][0]["qcow2"].is_u64() && built["builds"][0]["steps"].is_array(), "{built}");
    let (_, rest) = server.json(&[], "/api/v1/images/web/builds?after=1.1.0");
    assert_eq!((&rest["builds"][0]["version"], rest.get("next")), (&json!("1.0.0"), None));
    assert_eq!(server.json(&[], "/api/v1/images/web/builds?after=9").0, 400);
    assert_eq!(server.json(&[], "/api/v1/images/web?after=9").0, 400);
    let (_, shown) = server.json(&[], "/api/v1/images/web/versions/latest");
    assert_eq!(shown["artifact"]["version"], "1.1.0");
    let (_, facts) = server.json(&[], "/api/v1/images/web/resolve/1.0.0");
    assert!(facts.as_object().unwrap().values().all(serde_json::Value::is_string), "{facts}");
    let url = facts["qcow2_url"].as_str().unwrap();
    assert_eq!(url, format!("{}/images/web/1.0.0/disk.qcow2", server.url));
    let (status, problem) = server.json(&[], "/api/v1/images/none");
    assert_eq!((status, &problem["type"]), (404, &json!("urn:kiln:problem:unknown-image")));
}

#[test]
fn channels_move_by_compare_and_set_with_who_and_why() {
    let server = Serving::new("moves");
    let path = "/api/v1/images/web/channels/stable";
    let (status, moved) = server.post(PUBLISHER, &format!("{path}/promote"), "{\"version\": \"1.0.0\"}");
    assert_eq!((status, &moved["to"]), (200, &json!("1.0.0")));
    let body = "{\"version\": \"latest\", \"expect\": \"1.0.0\", \"reason\": \"soaked\", \"by\": \"ada@forge\"}";
    assert_eq!(server.post(PUBLISHER, &format!("{path}/promote"), body).0, 200);
    let (status, problem) = server.post(PUBLISHER, &format!("{path}/promote"), body);
    assert_eq!((status, &problem["type"]), (409, &json!("urn:kiln:problem:moved")));
    let (_, moved) = server.post(PUBLISHER, &format!("{path}/rollback"), "{\"reason\": \"slow\"}");
    assert_eq!((&moved["from"], &moved["to"]), (&json!("1.1.0"), &json!("1.0.0")));
    let (_, log) = server.json(&[], path);
    let by: Vec<_> = log["changes"].as_array().unwrap().iter().map(|change| change["by"].as_str().unwrap()).collect();
    assert_eq!(by, ["publisher", "ada@forge (publisher)", "publisher"]);
    assert_eq!(server.json(&[], "/api/v1/images/web/channels").1["stable"]["version"], "1.0.0");

    let (status, _) = server.post(PUBLISHER, "/api/v1/images/web/versions/1.0.0/revoke", "{\"reason\": \"CVE\"}");
    assert_eq!(status, 200);
    let (status, problem) = server.json(&[], "/api/v1/images/web/resolve/stable");
    assert_eq!((status, &problem["type"]), (410, &json!("urn:kiln:problem:revoked")));
    assert_eq!(server.ask(&[], "/images/web/1.0.0/disk.qcow2").0, 410);
    assert_eq!(server.json(&[], "/api/v1/images/web/resolve/1.0.0?allow_revoked=true").0, 200);
    assert_eq!(server.json(&[], "/v2/web/tags/list").1["tags"], json!(["1.1.0", "latest", "stable"]));

    for (token, path, body, status) in [
        (READER, "/api/v1/images/web/channels/stable/promote", "{\"version\": \"1.1.0\"}", 403),
        (READER, "/api/v1/images/web/missing", "{\"blobs\": []}", 403),
        ("kiln_nobody", "/api/v1/images/web/channels/stable/promote", "{\"version\": \"1.1.0\"}", 401),
        (PUBLISHER, "/api/v1/images/db/channels/stable/promote", "{\"version\": \"1.1.0\"}", 403),
        (PUBLISHER, "/api/v1/images/web/channels/stable/promote", "{\"vershun\": 1}", 400),
        (PUBLISHER, "/api/v1/images/web/channels/stable/promote", "[", 400),
        (PUBLISHER, "/api/v1/images/web/channels/STABLE/promote", "{\"version\": \"1.1.0\"}", 400),
        (PUBLISHER, "/api/v1/images/web/channels/latest/promote", "{\"version\": \"1.1.0\"}", 400),
        (PUBLISHER, "/api/v1/images/web/versions/1.1.0/revoke", "{}", 400),
        (PUBLISHER, "/api/v1/images/web/versions", "{\"version\": \"auto\"}", 400),
    ] {
        let (found, problem) = server.post(token, path, body);
        assert_eq!(found, status, "{path} {body}: {problem}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:kiln:problem:"), "{problem}");
    }
    let anonymous = server.json(&["-d", "{\"version\": \"1.1.0\"}"], "/api/v1/images/web/channels/stable/promote");
    assert_eq!(anonymous.0, 401);
    let long = server.path("long.json");
    fs::write(&long, "x".repeat(100_000)).unwrap();
    let (status, _) =
        server.post(PUBLISHER, "/api/v1/images/web/channels/stable/promote", &format!("@{}", long.display()));
    assert_eq!(status, 413);
}

#[test]
fn what_happens_is_told_to_who_waits() {
    let server = Serving::new("events");
    let mut events = Command::new("curl")
        .args(["-sN", &format!("{}/api/v1/events", server.url)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), ": kiln");
    let rev = server.json(&[], "/api/v1/images/web").1["rev"].as_u64().unwrap();
    let waiting = Command::new("curl")
        .args(["-s", &format!("{}/api/v1/images/web/log?after={rev}&wait=60", server.url)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Another process moves the channel: the server has to find it.
    let intent = crate::artifacts::intent("ada");
    server.registry.promote(&select("web@1.0.0"), &"stable".parse().unwrap(), None, &intent).unwrap();
    let data = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!((&data["image"], &data["change"]["action"]), (&json!("web"), &json!("promote")));
    let log: serde_json::Value = serde_json::from_slice(&waiting.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!((&log["rev"], &log["changes"][0]["by"]), (&json!(rev + 1), &json!("ada")));
    let none = server.json(&[], &format!("/api/v1/images/web/log?after={}", rev + 1)).1;
    assert_eq!(none["changes"], json!([]));
    events.kill().unwrap();
    events.wait().unwrap();
}

/// Listens to all events; the lines of the stream.
fn listen(server: &Serving) -> impl Iterator<Item = String> + use<> {
    let mut stream = TcpStream::connect(server.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /api/v1/events HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == ": kiln"), "the stream begins");
    lines
}

/// The first event that `wanted` says is the one.
fn event(lines: &mut impl Iterator<Item = String>, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let mut events = lines.filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    events.find(wanted).expect("the stream goes on")
}

#[test]
fn listeners_have_places_and_who_finds_none_is_told_when_to_come_again() {
    let server = Serving::new("listeners");
    let mut listeners: Vec<_> = (0..64).map(|_| listen(&server)).collect();
    let (status, head, body) = server.ask(&[], "/api/v1/events");
    assert!(status == 503 && head.contains("retry-after: "), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("too many listen"));
    listeners.pop();
    let free = done_within(Duration::from_secs(30), || {
        let mut stream = TcpStream::connect(server.host()).unwrap();
        write!(stream, "GET /api/v1/events HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map(|_| line.contains(" 200 "))
    });
    assert!(free.unwrap(), "a place that is left is free");
}

/// A record of the registry in `path` with another revision in it.
fn at_revision(path: &Path, rev: u64) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    value["rev"] = json!(rev);
    serde_json::to_vec(&value).unwrap()
}

/// What is in the log has happened when the head says so, at once.
fn happens(image: &Path, rev: u64) {
    let (head, new) = (image.join("head.json"), image.join("new"));
    fs::write(&new, at_revision(&head, rev)).unwrap();
    fs::rename(new, head).unwrap();
}

#[test]
fn an_image_that_cannot_be_read_does_not_end_the_stream_of_the_others() {
    let server = Serving::new("events-unreadable");
    let (directory, intent) = (server.path("db"), crate::artifacts::intent("ada"));
    let mut baked = artifact(&directory, "b-3", "three");
    baked.image = "db".parse().unwrap();
    server.registry.publish(&baked, &directory, &fixed("1.0.0"), &Quiet).unwrap();
    let mut lines = listen(&server);
    let db = server.registry.root().join("images/db");
    let put = |bytes: &[u8]| {
        fs::write(db.join("new"), bytes).unwrap();
        fs::rename(db.join("new"), db.join("head.json")).unwrap();
    };
    let whole = fs::read(db.join("head.json")).unwrap();
    put(b"{");
    let said = || {
        let log = server.log.lock().unwrap();
        log.iter().filter(|line| line.contains("the changes of `db` are not told")).count()
    };
    let told = done_within(Duration::from_secs(30), || Ok::<_, ()>(said() > 0)).unwrap();
    assert!(told, "{:?}", server.log.lock().unwrap());
    server.registry.promote(&select("web@1.0.0"), &"stable".parse().unwrap(), None, &intent).unwrap();
    event(&mut lines, |event| event["image"] == "web");
    assert_eq!(said(), 1, "once, not with every look");
    // What happens when it can be read again is told.
    put(&whole);
    server.registry.publish(&baked, &directory, &fixed("1.1.0"), &Quiet).unwrap();
    event(&mut lines, |event| event["image"] == "db" && event["change"]["rev"] == 2);
}

#[test]
fn more_changes_than_one_look_takes_are_told_to_the_last() {
    let server = Serving::new("events-many");
    let web = server.registry.root().join("images/web");
    let mut lines = listen(&server);
    for rev in 3..=2500 {
        fs::write(web.join(format!("log/{rev}.json")), at_revision(&web.join("log/2.json"), rev)).unwrap();
    }
    happens(&web, 2500);
    event(&mut lines, |event| event["change"]["rev"] == 3);
    event(&mut lines, |event| event["change"]["rev"] == 2500);
}

#[test]
fn a_version_is_pushed_and_pulled_and_only_what_is_missing_moves() {
    let server = Serving::of(
        Scratch::new("push-server"),
        Registry::open(&Scratch::new("x").0.join("r")).unwrap(),
        Some(tokens(true)),
        None,
    );
    let here = Scratch::new("push-here");
    let (mine, runtime) = (here.registry(), runtime());
    for (build, content, version) in [("b-1", "one", "1.0.0"), ("b-2", "two", "1.1.0")] {
        let artifact = artifact(&here.0.join(version), build, content);
        mine.publish(&artifact, &here.0.join(version), &fixed(version), &Quiet).unwrap();
    }
    let push = |token, version: &str| {
        let record = mine.record(&select(&format!("web@{version}"))).unwrap();
        runtime.block_on(remote(&server, token).push(&record, &mine, "ada@forge"))
    };
    for (token, status) in [(None, 401), (Some(READER), 403)] {
        let refused = push(token, "1.0.0");
        assert!(matches!(refused, Err(ServeError::Refused { status: found, .. }) if found == status), "{refused:?}");
    }
    let first = push(Some(PUBLISHER), "1.0.0").unwrap();
    assert!(!first.already && first.sent == first.whole, "{first:?}");
    let second = push(Some(PUBLISHER), "1.1.0").unwrap();
    assert!(!second.already && second.sent < second.whole, "{second:?}");
    let again = push(Some(PUBLISHER), "1.1.0").unwrap();
    assert!(again.already && again.sent == 0, "{again:?}");
    let log = server.json(&[], "/api/v1/images/web/log").1;
    assert_eq!(log["changes"][0]["by"], "ada@forge (publisher)");

    // Pulled onto another machine: the first as a whole, the second without what the first has.
    let there = Scratch::new("pull-there");
    let theirs = there.registry();
    let pull =
        |name: &str| runtime.block_on(remote(&server, None).pull(&select(name), Allowed::default(), &theirs, "bob"));
    let first = pull("web@1.0.0").unwrap();
    assert!(!first.already && first.fetched * 10 > first.whole * 9, "{first:?}");
    let second = pull("web@latest").unwrap();
    assert_eq!(second.record.artifact.version.as_str(), "1.1.0");
    // Of the one segment that differs only the frame of the one chunk that does.
    assert!(second.fetched * 4 < second.whole, "{second:?}");
    assert!(pull("web").unwrap().already);
    for version in ["1.0.0", "1.1.0"] {
        let record = theirs.record(&select(&format!("web@{version}"))).unwrap();
        let original = mine.record(&select(&format!("web@{version}"))).unwrap();
        assert!(!original.attestations.is_empty() && record.attestations == original.attestations, "{version}");
        assert!(theirs.verify_version(&record, &|_, _| true).unwrap().findings.is_empty(), "{version}");
        let file = there.0.join("out.qcow2");
        theirs.export(&record, "qcow2", &file, &|_| true).unwrap();
        let sealed = fs::read(here.0.join(version).join("web.qcow2")).unwrap();
        assert!(fs::read(&file).unwrap() == sealed, "{version}");
    }
    let unknown = pull("web@9.9.9");
    assert!(
        matches!(&unknown, Err(ServeError::Refused { status: 404, kind, .. }) if kind == "unknown-version"),
        "{unknown:?}"
    );
}

/// To know the digest of a blob is not to have it: who cannot read an image cannot make it his by naming its blobs.
#[test]
fn who_publishes_to_a_closed_server_names_no_blobs_of_images_that_he_cannot_read() {
    const OTHER: &str = "kiln_other";
    let digest = Digest::of(OTHER.as_bytes());
    let entry = format!("[[token]]\nname = \"o\"\nsha256 = \"{digest}\"\nimages = [\"db\"]\nallow = [\"publish\"]\n");
    let server = Serving::with("closed", Some(tokens(false) + &entry));
    let here = Scratch::new("closed-here");
    let mine = here.registry();
    for (build, content, version) in [("b-1", "one", "1.0.0"), ("b-2", "two", "1.1.0")] {
        let mut artifact = artifact(&here.0.join(version), build, content);
        artifact.image = "db".parse().unwrap();
        mine.publish(&artifact, &here.0.join(version), &fixed(version), &Quiet).unwrap();
    }
    let record = |version: &str| mine.record(&select(&format!("db@{version}"))).unwrap();
    let of_web = server.registry.record(&select("web@1.0.0")).unwrap();
    let manifest = fs::read(server.registry.blob(&of_web.manifest.digest)).unwrap();
    let blobs = server.registry.blobs_of(&manifest).unwrap();

    // Asked, and offered without being asked.
    let asked: Vec<_> = blobs.iter().map(|(digest, size)| json!({ "digest": digest, "size": size })).collect();
    let question = json!({ "blobs": asked }).to_string();
    let missing = |token, image| {
        let (status, answer) = server.post(token, &format!("/api/v1/images/{image}/missing"), &question);
        assert_eq!(status, 200, "{answer}");
        answer["missing"].as_array().unwrap().len()
    };
    assert_eq!((missing(OTHER, "db"), missing(PUBLISHER, "web")), (blobs.len(), 0));
    // What is there and what is not look alike.
    let mixed = [blobs[0].0, Digest::of(b"nowhere"), blobs[1].0, Digest::of(b"nowhere")];
    let size = |n: usize| if n % 2 == 0 { blobs[n / 2].1 } else { 7 };
    let sized = mixed.iter().enumerate().map(|(n, digest)| json!({ "digest": digest, "size": size(n) }));
    let question = json!({ "blobs": sized.collect::<Vec<_>>() }).to_string();
    let answer = server.post(OTHER, "/api/v1/images/db/missing", &question).1;
    assert_eq!(answer["missing"], json!([mixed[0], mixed[1], mixed[2]]));
    let artifact = record("1.0.0").artifact;
    let offer = wire::Offer {
        manifest: of_web.manifest.clone(),
        artifact,
        version: "1.0.0".to_owned(),
        by: None,
        attestations: Vec::new(),
    };
    let offer = serde_json::to_string(&offer).unwrap();
    let (status, refused) = server.post(OTHER, "/api/v1/images/db/versions", &offer);
    assert_eq!((status, &refused["missing"]), (409, &json!([of_web.manifest.digest])), "{refused}");

    // Who has the bytes publishes them, though they are there: all are sent, and of the next version what differs.
    let push =
        |version: &str| runtime().block_on(remote(&server, Some(OTHER)).push(&record(version), &mine, "ada")).unwrap();
    let first = push("1.0.0");
    assert!(!first.already && first.sent == first.whole, "{first:?}");
    let second = push("1.1.0");
    assert!(!second.already && second.sent < second.whole, "{second:?}");
    assert_eq!(push("1.1.0").sent, 0);
    assert_eq!(missing(OTHER, "db"), 0);
}

#[test]
fn another_disk_under_the_same_version_is_refused_on_both_ways() {
    let server = Serving::new("conflict");
    let here = Scratch::new("conflict-here");
    let mine = here.registry();
    let other = artifact(&here.0.join("baked"), "b-9", "something else");
    mine.publish(&other, &here.0.join("baked"), &fixed("1.0.0"), &Quiet).unwrap();
    let record = mine.record(&select("web@1.0.0")).unwrap();
    let (runtime, remote) = (runtime(), remote(&server, Some(PUBLISHER)));
    let pushed = runtime.block_on(remote.push(&record, &mine, "ada"));
    assert!(
        matches!(&pushed, Err(ServeError::Refused { status: 409, kind, .. }) if kind == "version-exists"),
        "{pushed:?}"
    );
    let pulled = runtime.block_on(remote.pull(&select("web@1.0.0"), Allowed::default(), &mine, "ada"));
    assert!(matches!(&pulled, Err(ServeError::Registry(_))), "{pulled:?}");
}

#[test]
fn a_client_moves_channels_and_reads_the_history() {
    let server = Serving::new("client");
    let (runtime, remote) = (runtime(), remote(&server, Some(PUBLISHER)));
    let (web, stable) = ("web".parse().unwrap(), "stable".parse().unwrap());
    runtime.block_on(async {
        let request = wire::Promote { version: "1.0.0".into(), ..Default::default() };
        assert_eq!(remote.promote(&web, &stable, &request).await.unwrap().rev, 3);
        assert_eq!(remote.usable(&select("web@stable"), false).await.unwrap().artifact.version.as_str(), "1.0.0");
        assert_eq!(remote.history(&web, &stable).await.unwrap().changes.len(), 1);
        let image = remote.image(&web).await.unwrap();
        assert_eq!((image.versions.len(), image.versions[1].channels.len()), (2, 1));
        assert_eq!(remote.images().await.unwrap().images.len(), 1);
        let none = remote.rollback(&web, &stable, &wire::Rollback::default()).await;
        assert!(matches!(&none, Err(ServeError::Refused { kind, .. }) if kind == "nothing-before"), "{none:?}");
    });
}

#[test]
fn bytes_that_are_not_what_their_name_says_are_refused_by_the_server() {
    let server = Serving::new("put");
    let authorization = format!("Authorization: Bearer {PUBLISHER}");
    let put = |digest: Digest, arguments: &[&str]| {
        let path = format!("/api/v1/images/web/blobs/{digest}");
        let all =
            [&["-X", "PUT", "-H", &authorization, "-H", "Content-Type: application/octet-stream"], arguments].concat();
        server.ask(&all, &path).0
    };
    assert_eq!(put(Digest::of(b"right"), &["--data-binary", "right"]), 201);
    assert_eq!(put(Digest::of(b"right"), &["--data-binary", "right"]), 200);
    assert_eq!(put(Digest::of(b"other"), &["--data-binary", "wrong"]), 422);
    assert_eq!(put(Digest::of(b"other"), &["-H", "Transfer-Encoding: chunked", "--data-binary", "other"]), 411);
    let left = fs::read_dir(server.registry.root().join("tmp")).unwrap();
    assert!(left.into_iter().all(|entry| entry.unwrap().file_name() == "lock"));
    assert!(!server.registry.blob(&Digest::of(b"other")).exists());
}

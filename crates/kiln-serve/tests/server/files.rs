//! Versions as files, asked for with stock programs: curl, qemu-img, sha256sum, skopeo.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use crate::artifacts::{disk, intent, select};
use crate::serving::{READER, Serving, run, text, tokens};
use kiln_core::Digest;

#[test]
fn a_version_is_a_plain_file_with_length_tag_and_digest() {
    let server = Serving::new("plain");
    let record = server.registry.record(&select("web@1.0.0")).unwrap();
    let qcow2 = record.file("qcow2").unwrap();
    let (status, head, body) = server.ask(&[], "/images/web/1.0.0/disk.qcow2");
    assert_eq!((status, Digest::of(&body)), (200, qcow2.sha256));
    assert!(head.contains(&format!("content-length: {}", qcow2.bytes)), "{head}");
    assert!(head.contains(&format!("etag: \"{}\"", qcow2.sha256.hex())), "{head}");
    assert!(head.contains("accept-ranges: bytes") && head.contains("cache-control: no-cache\r\n"), "{head}");
    assert!(head.contains("repr-digest: sha-256=:") && head.contains("digest: sha-256="), "{head}");
    let (status, head, body) = server.ask(&["--head"], "/images/web/1.0.0/disk.qcow2");
    assert!(status == 200 && body.is_empty() && head.contains(&format!("content-length: {}", qcow2.bytes)), "{head}");
    let (_, _, raw) = server.ask(&[], "/images/web/1.0.0/disk.raw");
    assert!(raw == disk("one"), "the raw disk");
    // `latest` and a channel may mean another version tomorrow.
    server.registry.promote(&select("web@1.0.0"), &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
    for (name, content) in [("latest", "two"), ("stable", "one")] {
        let (_, head, raw) = server.ask(&[], &format!("/images/web/{name}/disk.raw"));
        assert!(raw == disk(content) && head.contains("cache-control: no-cache"), "{name}: {head}");
    }
    let tag = format!("If-None-Match: \"{}\"", qcow2.sha256.hex());
    assert_eq!(server.ask(&["-H", &tag], "/images/web/stable/disk.qcow2").0, 304);
    // Sums as `sha256sum -c` reads them, also of what no record has.
    for form in ["qcow2", "raw", "raw.zst"] {
        let file = server.path(&format!("disk.{form}"));
        server.curl(&["-o", text(&file)], &format!("/images/web/1.0.0/disk.{form}"));
        let sums = server.path("sums");
        server.curl(&["-o", text(&sums)], &format!("/images/web/1.0.0/disk.{form}.sha256"));
        let check = Command::new("sha256sum").args(["-c", "sums"]).current_dir(server.path("")).output().unwrap();
        assert!(check.status.success(), "{check:?}");
    }
    for (path, status, kind) in [
        ("/images/web/9.9.9/disk.qcow2", 404, "unknown-version"),
        ("/images/none/1.0.0/disk.qcow2", 404, "unknown-image"),
        ("/images/web/1.0.0/disk.vmdk", 404, "unknown-format"),
        ("/images/web/1.0.0/passwd", 404, "not-found"),
        ("/images/..%2fweb/1.0.0/disk.raw", 400, "bad-request"),
        ("/nothing", 404, "not-found"),
    ] {
        let (found, problem) = server.json(&[], path);
        assert_eq!((found, problem["type"].as_str()), (status, Some(&*format!("urn:kiln:problem:{kind}"))), "{path}");
    }
}

#[test]
fn ranges_are_parts_of_the_same_file() {
    let server = Serving::new("ranges");
    for form in ["qcow2", "raw", "raw.zst"] {
        let path = format!("/images/web/1.0.0/disk.{form}");
        let whole = server.ask(&[], &path).2;
        let size = whole.len();
        for (from, to) in
            [(0, 0), (65_530, 65_600), (size / 3, size / 3 + 20_000), (size - 1, size - 1), (100, size - 1)]
        {
            let (status, head, part) = server.ask(&["-r", &format!("{from}-{to}")], &path);
            assert_eq!(status, 206, "{head}");
            assert!(head.contains(&format!("content-range: bytes {from}-{to}/{size}")), "{head}");
            assert!(part == whole[from..=to], "{form} {from}-{to}");
        }
        let (status, head, _) = server.ask(&["-r", &format!("{size}-")], &path);
        assert!(status == 416 && head.contains(&format!("content-range: bytes */{size}")), "{head}");
        let (_, head, part) = server.ask(&["-r", "-7"], &path);
        assert!(part == whole[size - 7..], "{head}");
        let (status, head, parts) = server.ask(&["-r", "0-3,100-103"], &path);
        assert!(status == 206 && head.contains("multipart/byteranges; boundary="), "{head}");
        assert!(head.contains(&format!("content-length: {}", parts.len())), "{head}");
        let has = |wanted: &[u8]| parts.windows(wanted.len()).any(|window| window == wanted);
        assert!(has(b"Content-Range: bytes 0-3/") && has(&whole[..4]) && has(&whole[100..104]));
        // A file that changed under its address is sent whole.
        let other = ["-r", "0-3", "-H", "If-Range: \"another\""];
        assert_eq!(server.ask(&other, &path).0, 200);
    }
}

#[test]
fn curl_resumes_and_qemu_img_reads() {
    let server = Serving::new("stock");
    let whole = server.ask(&[], "/images/web/1.0.0/disk.qcow2").2;
    let file = server.path("resumed.qcow2");
    fs::write(&file, &whole[..whole.len() / 3]).unwrap();
    server.curl(&["-C", "-", "-o", text(&file)], "/images/web/1.0.0/disk.qcow2");
    assert!(fs::read(&file).unwrap() == whole);
    let (raw, url) = (server.path("converted.raw"), format!("{}/images/web/1.0.0/disk.qcow2", server.url));
    let image = format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"http\",\"url\":\"{url}\"}}}}");
    run("qemu-img", &["convert", "-O", "raw", &image, text(&raw)]);
    assert!(fs::read(&raw).unwrap() == disk("one"));
    run("qemu-img", &["check", &image]);
    run("qemu-img", &["convert", "-O", "raw", &url, text(&raw)]);
    assert!(fs::read(&raw).unwrap() == disk("one"));
}

#[test]
fn skopeo_fetches_a_version_and_zstd_makes_the_disk_of_it() {
    let server = Serving::new("skopeo");
    server.registry.promote(&select("web@1.0.0"), &"stable".parse().unwrap(), None, &intent("ada")).unwrap();
    let record = server.registry.record(&select("web@1.0.0")).unwrap();
    for reference in ["web:1.0.0".to_owned(), "web:stable".to_owned(), format!("web@{}", record.manifest.digest)] {
        let to = server.path("fetched");
        let _ = fs::remove_dir_all(&to);
        let from = format!("docker://{}/{reference}", server.host());
        run("skopeo", &["copy", "--src-tls-verify=false", &from, &format!("dir:{}", text(&to))]);
        let manifest = fs::read(to.join("manifest.json")).unwrap();
        assert_eq!(Digest::of(&manifest), record.manifest.digest);
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let layers = layers.map(|layer| fs::read(to.join(&layer["digest"].as_str().unwrap()[7..])).unwrap());
        fs::write(server.path("disk.zst"), layers.collect::<Vec<_>>().concat()).unwrap();
        let raw = run("zstd", &["-d", "-c", text(&server.path("disk.zst"))]).stdout;
        assert!(raw == disk("one"), "{reference}");
    }
    let tags = run("skopeo", &["list-tags", "--tls-verify=false", &format!("docker://{}/web", server.host())]).stdout;
    let tags: serde_json::Value = serde_json::from_slice(&tags).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["1.0.0", "1.1.0", "latest", "stable"]));
    let inspected = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{}/web:1.1.0", server.host())];
    assert!(run("skopeo", &inspected).stdout.starts_with(b"{"));
}

#[test]
fn the_oci_endpoint_answers_as_the_specification_says() {
    let server = Serving::new("oci");
    let record = server.registry.record(&select("web@1.0.0")).unwrap();
    let (status, head, _) = server.ask(&[], "/v2/");
    assert!(status == 200 && head.contains("docker-distribution-api-version: registry/2.0"), "{head}");
    let (status, head, _) = server.ask(&["--head"], "/v2/web/manifests/1.0.0");
    assert!(status == 200 && head.contains(&format!("docker-content-digest: {}", record.manifest.digest)), "{head}");
    assert!(head.contains("content-type: application/vnd.oci.image.manifest.v1+json"), "{head}");
    let layer = server.registry.content(&record).unwrap().segments[0].blob.clone();
    let (status, head, part) = server.ask(&["-r", "0-3"], &format!("/v2/web/blobs/{}", layer.digest));
    assert!(status == 206 && part == [0x28, 0xb5, 0x2f, 0xfd], "{head}");
    assert_eq!(server.json(&[], "/v2/_catalog").1, serde_json::json!({ "repositories": ["web"] }));
    let (_, head, _) = server.ask(&[], "/v2/web/tags/list?n=1");
    assert!(head.contains("link: </v2/web/tags/list?n=1&last=1.0.0>; rel=\"next\""), "{head}");
    let rest = server.json(&[], "/v2/web/tags/list?n=1&last=1.0.0").1;
    assert_eq!(rest["tags"], serde_json::json!(["1.1.0"]));
    let referrers = server.json(&[], &format!("/v2/web/referrers/{}", record.manifest.digest)).1;
    assert_eq!(
        (&referrers["schemaVersion"], referrers["manifests"].as_array().unwrap().len()),
        (&2.into(), record.attestations.len())
    );
    let said = referrers["manifests"][0]["digest"].as_str().unwrap();
    let statement = server.json(&[], &format!("/v2/web/manifests/{said}")).1;
    assert_eq!(statement["subject"]["digest"], record.manifest.digest.to_string());
    let others = server.json(&[], &format!("/v2/web/referrers/{}?artifactType=text/plain", record.manifest.digest)).1;
    assert_eq!(others["manifests"], serde_json::json!([]));
    let nothing = Digest::of(b"nothing");
    for (path, status, code) in [
        ("/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/web/manifests/9.9".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/web/manifests/{nothing}"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/web/manifests/{}", layer.digest), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/web/blobs/{nothing}"), 404, "BLOB_UNKNOWN"),
        ("/v2/web/blobs/sha256:abc".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/a/b/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
    ] {
        let (found, body) = server.json(&[], &path);
        assert_eq!((found, body["errors"][0]["code"].as_str()), (status, Some(code)), "{path}: {body}");
    }
    let (status, body) = server.json(&["-X", "PUT", "-d", "x"], "/v2/web/manifests/1.0.0");
    assert_eq!((status, body["errors"][0]["code"].as_str()), (405, Some("UNSUPPORTED")));
}

#[test]
fn what_can_be_revoked_or_needs_a_token_is_not_kept_by_caches() {
    let bearer = format!("Authorization: Bearer {READER}");
    for public in [true, false] {
        let server = Serving::with(&format!("caches-{public}"), Some(tokens(public)));
        let record = server.registry.record(&select("web@1.0.0")).unwrap();
        let layer = server.registry.content(&record).unwrap().segments[0].blob.digest;
        let (asked, kept) = (Some("no-cache"), Some("public, max-age=31536000, immutable"));
        for (path, open) in [
            ("/images/web/1.0.0/disk.qcow2".to_owned(), asked),
            ("/images/web/1.0.0/disk.qcow2.sha256".to_owned(), asked),
            ("/images/web/latest/disk.raw".to_owned(), asked),
            ("/v2/web/manifests/1.0.0".to_owned(), asked),
            ("/api/v1/images/web".to_owned(), asked),
            ("/v2/_catalog".to_owned(), None),
            (format!("/images/web/{}/disk.raw", record.artifact.disk.digest), kept),
            (format!("/v2/web/manifests/{}", record.manifest.digest), kept),
            (format!("/v2/web/blobs/{layer}"), kept),
        ] {
            let (status, head, _) = server.ask(&["-H", &bearer], &path);
            assert_eq!(status, 200, "{path}: {head}");
            assert!(!path.starts_with("/images/") || head.contains("etag: "), "{path}: {head}");
            let caching = head.lines().find_map(|line| line.strip_prefix("cache-control: "));
            assert_eq!(caching, if public { open } else { Some("private, no-cache") }, "{path}");
        }
    }
}

#[test]
fn a_sum_that_many_ask_for_at_once_is_the_same_for_all() {
    let server = Serving::new("sums");
    let sum = || server.ask(&[], "/images/web/1.0.0/disk.raw.zst.sha256");
    let sums: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(sum)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let expected =
        format!("{}  disk.raw.zst\n", Digest::of(&server.ask(&[], "/images/web/1.0.0/disk.raw.zst").2).hex());
    for (status, head, body) in sums {
        assert_eq!((status, String::from_utf8(body).unwrap()), (200, expected.clone()), "{head}");
    }
}

#[test]
fn where_reading_is_not_public_everything_asks_for_a_token() {
    let server = Serving::with("private", Some(tokens(false)));
    let record = server.registry.record(&select("web@1.0.0")).unwrap();
    for path in [
        "/images/web/1.0.0/disk.qcow2",
        "/v2/",
        "/v2/_catalog",
        "/v2/web/tags/list",
        "/api/v1/images",
        "/api/v1/images/web",
        "/api/v1/images/web/resolve/latest",
        "/api/v1/events",
        "/metrics",
    ] {
        let (status, head, _) = server.ask(&[], path);
        assert!(status == 401 && head.contains("www-authenticate: "), "{path}: {head}");
    }
    let bearer = format!("Authorization: Bearer {READER}");
    assert_eq!(server.ask(&["-H", &bearer], "/images/web/1.0.0/disk.qcow2").0, 200);
    assert_eq!(server.ask(&["-H", "Authorization: Bearer kiln_other"], "/images/web/1.0.0/disk.qcow2").0, 401);
    let from = format!("docker://{}/web:1.0.0", server.host());
    let to = format!("dir:{}", text(&server.path("fetched")));
    let credential = format!("anyone:{READER}");
    run("skopeo", &["copy", "--src-creds", &credential, "--src-tls-verify=false", &from, &to]);
    // A blob is given to those who may read an image that has it, and to nobody by its name alone.
    let stray = b"a blob of another image";
    server.registry.receive_bytes(Digest::of(stray), stray).unwrap();
    let path = format!("/v2/web/blobs/{}", Digest::of(stray));
    assert_eq!(server.ask(&["-H", &bearer], &path).0, 404);
    let path = format!("/v2/web/blobs/{}", record.manifest.digest);
    assert_eq!(server.ask(&["-H", &bearer], &path).0, 200);
}

#[test]
fn a_damaged_blob_is_never_sent_as_whole() {
    let server = Serving::new("damaged");
    let record = server.registry.record(&select("web@1.0.0")).unwrap();
    let blob = server.registry.blob(&server.registry.content(&record).unwrap().segments[2].blob.digest);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[5000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let url = format!("{}/images/web/1.0.0/disk.raw", server.url);
    let cut = Command::new("curl").args(["-sS", "-o", "/dev/null", &url]).output().unwrap();
    assert!(!cut.status.success(), "{cut:?}");
    assert!(server.log.lock().unwrap().iter().any(|line| line.contains("damaged")), "{:?}", server.log);
    // The rest of the disk, and what is asked for beside, is still served.
    assert_eq!(server.ask(&["-r", "0-99"], "/images/web/1.0.0/disk.raw").0, 206);
    assert_eq!(server.ask(&[], "/healthz").0, 200);
}

#[test]
fn rude_requests_are_refused_and_harm_nobody() {
    let server = Serving::new("rude");
    let talk = |request: &[u8]| {
        let mut stream = TcpStream::connect(server.host()).unwrap();
        // The server may answer and close before all was sent.
        let _ = stream.write_all(request);
        // Not half closed: whoever hangs up in the middle of a request may not be answered.
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let long = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    assert!(talk(long.as_bytes()).starts_with("HTTP/1.1 431"), "a long header");
    let many = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    assert!(talk(many.as_bytes()).starts_with("HTTP/1.1 431"), "many headers");
    assert!(talk(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").starts_with("HTTP/1.1 400"), "not HTTP");
    for path in ["/v2/%00/tags/list", "/images/%ff/1/disk.raw", "/api/v1/images/a%0d%0ab", "/v2/../../etc/passwd"] {
        let answer = talk(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        assert!(!answer.contains("root:"), "{path}");
    }
    let answer = talk(b"GET /api/v1/images/web/resolve/1.0.0 HTTP/1.1\r\nHost: a\"><b>\r\nConnection: close\r\n\r\n");
    assert!(!answer.contains("<b>"), "{answer}");
    assert_eq!(server.ask(&[], "/readyz").0, 200);
    let metrics = String::from_utf8(server.ask(&[], "/metrics").2).unwrap();
    assert!(
        metrics.contains("kiln_versions 2\n") && metrics.contains("kiln_answers_total{class=\"4xx\"}"),
        "{metrics}"
    );
}

//! Files to and from a guest, over a real OpenSSH server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_io::{
    guest::{Command, Content, Entry, Guest as _, GuestError, Progress, Quiet},
    ssh::Target,
};
use kiln_tests::{
    guest::{LONG, connect, connect_through, eventually},
    proxy::{Conditions, Proxy},
    sshd::Sshd,
};

fn bytes(path: impl Into<PathBuf>, content: Vec<u8>) -> Entry {
    Entry { path: path.into(), mode: 0o640, content: Content::Bytes(content) }
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

/// The size that travels on a channel of its own, and the one that does not.
const SIZES: [usize; 2] = [10, 1 << 20];

#[tokio::test]
async fn any_name_arrives_under_its_own_bytes() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    for size in SIZES {
        let odd: [&[u8]; 10] = [
            b"-rf",
            b"new\nline",
            b" ",
            b"\xff\xfe\x01",
            "ünï-\u{202e}".as_bytes(),
            b"'\"\\$(x)`",
            b"*",
            b"--help",
            b"\r",
            &[b'n'; 255],
        ];
        let target = sshd.directory().join(format!("it's -a {size}"));
        let mut entries: Vec<_> =
            odd.iter().map(|name| bytes(OsStr::from_bytes(name), [name, &vec![b'x'; size][..]].concat())).collect();
        entries.push(Entry { path: "sub/dir".into(), mode: 0o700, content: Content::Directory });
        entries.push(Entry { path: "sub/link".into(), mode: 0o777, content: Content::Link("../-rf".into()) });
        guest.upload(target.to_str().unwrap(), &entries, &Quiet).await.unwrap();
        for name in odd {
            let path = target.join(OsStr::from_bytes(name));
            assert!(fs::read(&path).unwrap() == [name, &vec![b'x'; size][..]].concat(), "{path:?}");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        }
        assert_eq!(fs::read_link(target.join("sub/link")).unwrap(), Path::new("../-rf"));
        assert_eq!(target.join("sub/dir").metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(names(&target).len(), odd.len() + 1);
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    }
}

#[tokio::test]
async fn an_upload_merges_into_what_is_there_and_leaves_the_rest() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    for size in SIZES {
        let target = sshd.directory().join(format!("etc {size}"));
        fs::create_dir_all(target.join("kept")).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o751)).unwrap();
        fs::set_permissions(target.join("kept"), fs::Permissions::from_mode(0o711)).unwrap();
        for file in ["old", "kept/old", "kept/new"] {
            fs::write(target.join(file), "old").unwrap();
        }
        let entries =
            [bytes("kept/new", vec![b'n'; size]), bytes("made/new", b"new".to_vec()), bytes("new", b"new".to_vec())];
        guest.upload(target.to_str().unwrap(), &entries, &Quiet).await.unwrap();
        assert_eq!(fs::read(target.join("kept/new")).unwrap(), vec![b'n'; size]);
        assert_eq!(fs::read(target.join("kept/old")).unwrap(), b"old");
        assert_eq!(names(&target).len(), 4, "{:?}", names(&target));
        for (path, mode) in [("", 0o751), ("kept", 0o711), ("kept/new", 0o640)] {
            assert_eq!(target.join(path).metadata().unwrap().permissions().mode() & 0o7777, mode, "{path}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_unpacked_says_where_and_why() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let file = sshd.directory().join("file");
    fs::write(&file, "").unwrap();
    for size in SIZES {
        let error = guest.upload(file.to_str().unwrap(), &[bytes("x", vec![0; size])], &Quiet).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("unpacking into") && text.contains("Not a directory"), "{text}");
        let leaving = guest.upload("/tmp/none", &[bytes("../x", vec![0; size])], &Quiet).await.unwrap_err();
        assert!(matches!(leaving, GuestError::Remote { .. }), "{leaving}");
    }
}

#[derive(Debug, Default)]
struct Seen(AtomicU64, Mutex<Vec<u64>>);

impl Progress for Seen {
    fn at(&self, done: u64) {
        self.0.fetch_max(done, Ordering::Relaxed);
        self.1.lock().unwrap().push(done);
    }
}

#[tokio::test]
async fn a_large_file_goes_up_and_comes_back_the_same_with_progress() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let at = |name: &str| sshd.directory().join(name);
    let content: Vec<u8> = (0..40_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(at("source"), &content).unwrap();
    let size = content.len() as u64;
    let file = Entry { path: "big".into(), mode: 0o600, content: Content::File { path: at("source"), bytes: size } };
    let seen = Seen::default();
    guest.upload(at("up").to_str().unwrap(), &[file], &seen).await.unwrap();
    assert_eq!(seen.0.load(Ordering::Relaxed), size);
    let steps = seen.1.into_inner().unwrap();
    assert!(steps.len() > 10 && steps.is_sorted());
    assert_eq!(guest.download(at("up/big").to_str().unwrap(), &at("back")).await.unwrap(), size);
    assert!(fs::read(at("back")).unwrap() == content);
}

#[tokio::test]
async fn a_download_of_what_is_missing_leaves_the_local_file_as_it_was() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let local = sshd.directory().join("local");
    fs::write(&local, "before").unwrap();
    let before = names(sshd.directory());
    let error = guest.download("/no/such -file", &local).await.unwrap_err();
    assert!(error.to_string().contains("/no/such -file"), "{error}");
    assert_eq!(fs::read(&local).unwrap(), b"before");
    assert_eq!(names(sshd.directory()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_in_both_directions_at_once_do_not_disturb_each_other() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let at = |name: &str| sshd.directory().join(name).display().to_string();
    let content: Vec<u8> = (0..10_000_019_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(at("source"), &content).unwrap();
    let up = [bytes("file", content.clone())];
    let script = Command::new("head -c 30000000 /dev/zero | tr '\\0' x; exit 5", LONG);
    let kept = kiln_tests::guest::Kept::default();
    let (down_to, up_to, source) = (PathBuf::from(at("down")), at("up"), at("source"));
    let (ran, sent, fetched, sent_too) = tokio::join!(
        guest.run(&script, &kept),
        guest.upload(&up_to, &up, &Quiet),
        guest.download(&source, &down_to),
        async { guest.upload(&at("up too"), &up, &Quiet).await },
    );
    assert_eq!(ran.unwrap(), kiln_io::guest::Exit::Code(5));
    sent.unwrap();
    sent_too.unwrap();
    assert_eq!(fetched.unwrap(), content.len() as u64);
    assert!(kept.bytes().0.len() == 30_000_000);
    for path in ["down", "up/file", "up too/file"] {
        assert!(fs::read(at(path)).unwrap() == content, "{path}");
    }
}

/// Whatever the place of the cut: an error, nothing under the final name, nothing left beside it, and the same again succeeds.
#[tokio::test]
async fn an_upload_that_is_cut_leaves_nothing_and_can_be_repeated() {
    let sshd = Sshd::start().await;
    let size = 4_u64 << 20;
    let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let parent = sshd.directory().join("parent");
    fs::create_dir(&parent).unwrap();
    let target = parent.join("target");
    let entries = [bytes("one", content.clone()), bytes("two", content.clone())];
    for percent in [0, 1, 50, 99] {
        let proxy = Proxy::start(sshd.port, Conditions::default());
        let short = Target { return_within: Duration::from_millis(100), ..sshd.target(proxy.port) };
        let guest = kiln_io::ssh::SshGuest::connect(short, tokio_util::sync::CancellationToken::new()).await.unwrap();
        proxy.cut_at(proxy.passed() + 2 * size * percent / 100);
        let result = guest.upload(target.to_str().unwrap(), &entries, &Quiet).await;
        assert!(matches!(result, Err(GuestError::Lost { .. })), "{percent} %: {result:?}");
        assert!(!target.exists(), "{percent} %");
        eventually("the guest removed what had come", || names(&parent).is_empty()).await;
    }
    let guest = connect_through(&sshd, sshd.port).await;
    guest.upload(target.to_str().unwrap(), &entries, &Quiet).await.unwrap();
    assert!(fs::read(target.join("two")).unwrap() == content);
}

/// The stream ends early although the connection stands: the seal is missing.
#[tokio::test]
async fn an_upload_whose_file_shrinks_leaves_nothing() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let source = sshd.directory().join("source");
    fs::write(&source, vec![1; 1 << 20]).unwrap();
    let parent = sshd.directory().join("parent");
    let target = parent.join("target");
    let content = Content::File { path: source, bytes: 2 << 20 };
    let error =
        guest.upload(target.to_str().unwrap(), &[Entry { path: "x".into(), mode: 0o600, content }], &Quiet).await;
    assert!(matches!(error, Err(GuestError::Local { .. })), "{error:?}");
    eventually("the guest removed what had come", || parent.exists() && names(&parent).is_empty()).await;
}

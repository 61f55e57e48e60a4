//! The directory of checkpoints on a real file system, without machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn store(root: &Path) -> Store {
    let dirs = Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") };
    Store::open(&dirs).unwrap()
}

/// A complete checkpoint on `below`, of 3 bytes of disk and 4 of memory, last used on a day of 1970.
fn put(store: &Store, below: &[&str], used: u32) -> String {
    let (id, directory) = store.place();
    create_private_dir(&directory).unwrap();
    fs::write(directory.join(DISK), "abc").unwrap();
    let stored = digest_of(&directory.join(DISK)).unwrap();
    let pair = KeyPair::generate("").unwrap();
    let layers = below.iter().map(|id| (*id).to_owned()).chain([id.clone()]).collect();
    let record = Record {
        format: kiln_core::checkpoint::FORMAT,
        key: Digest::of(id.as_bytes()),
        image: "web".to_owned(),
        origin: "b-1".to_owned(),
        number: below.len(),
        name: "step".to_owned(),
        made: 1,
        pause: 1,
        layers,
        disk: stored,
        memory: Stored { bytes: 4, ..stored },
        login: pair.public.line(),
        host: pair.public.line(),
        boot_id: String::new(),
        nonce: String::new(),
        steps: BTreeMap::new(),
    };
    store.complete(&id, &record, &LoginKeys { login: pair.clone(), host: pair }).unwrap();
    store.touch(std::slice::from_ref(&id), SystemTime::UNIX_EPOCH + DAY * used);
    id
}

fn ids(store: &Store) -> BTreeSet<String> {
    store.list().into_iter().map(|checkpoint| checkpoint.id).collect()
}

#[test]
fn makes_room_from_the_one_used_longest_ago_and_never_from_beneath_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let below = put(&store, &[], 1);
    let above = put(&store, &[&below], 5);
    let other = put(&store, &[], 3);
    let now = SystemTime::UNIX_EPOCH + DAY * 6;
    assert_eq!(store.prune(Budget(21), now), Pruned::default());
    assert_eq!(store.prune(Budget(14), now).removed, 1);
    assert_eq!(ids(&store), [below.clone(), above].into(), "`{other}` goes although `{below}` is older");
    assert_eq!(store.prune_older(DAY * 2, now), Pruned::default(), "what stands on it was used");
    assert_eq!(store.prune(Budget(0), now).bytes, 14);
}

#[test]
fn what_is_leased_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let id = put(&store, &[], 1);
    let lease = store.lease(std::slice::from_ref(&id)).unwrap();
    let now = SystemTime::UNIX_EPOCH + DAY;
    assert_eq!(store.prune(Budget(0), now), Pruned { removed: 0, bytes: 0, in_use: 1 });
    drop(lease);
    assert_eq!(store.prune(Budget(0), now).removed, 1);
    assert!(matches!(store.lease(&[id]), Err(CheckpointError::LayerGone)));
}

#[test]
fn a_changed_disk_is_noticed_wherever_it_is_in_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let below = put(&store, &[], 1);
    let above = put(&store, &[&below], 1);
    let find = || store.list().into_iter().find(|checkpoint| checkpoint.id == above).unwrap();
    store.verify_disks(&find()).unwrap();
    fs::write(store.directory().join(&below).join(DISK), "abd").unwrap();
    assert!(matches!(store.verify_disks(&find()), Err(CheckpointError::Damaged { file: "disk", .. })));
    store.set_aside(&below);
    assert!(matches!(store.verify_disks(&find()), Err(CheckpointError::LayerGone)));
    assert_eq!(ids(&store), [above.clone()].into());
}

#[test]
fn keys_come_back_and_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    put(&store, &[], 1);
    let found = store.list().remove(0);
    let keys = Store::login(&found).unwrap();
    assert_eq!(keys.login.public.line(), found.record.login);
    for file in [LOGIN_KEY, HOST_KEY, RECORD] {
        assert_eq!(found.directory.join(file).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    assert_eq!(store.directory().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn secrets_are_compared_by_this_user_s_own_key() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = |root: &Path| store(root).secret_key(true).unwrap().unwrap();
    assert_eq!(store(one.path()).secret_key(false).unwrap(), None);
    let secret = Secret::new("hunter2".to_owned());
    assert_eq!(keyed(&key(one.path()), &secret), keyed(&key(one.path()), &secret));
    assert_ne!(keyed(&key(one.path()), &secret), keyed(&key(two.path()), &secret));
    assert_ne!(keyed(&key(one.path()), &secret), keyed(&key(one.path()), &Secret::new("hunter3".to_owned())));
}

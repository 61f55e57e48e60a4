//! The directory of checkpoints: finding, leasing, setting aside, making room.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kiln_core::{Digest, Secret};
use kiln_io::{
    dirs::Dirs,
    fs::{Lock, create_private_dir, failed, free_space, is_open_elsewhere, write_atomic, write_private},
    keys::KeyPair,
    random,
};
use sha2::{Digest as _, Sha256};

use super::{Checkpoint, CheckpointError, DISK, HOST_KEY, LOGIN_KEY, Lease, RECORD, Record, Stored};
use crate::qemu::LoginKeys;

/// Checkpoints are only ever worth time; more than this is better spent on something else.
const MOST: u64 = 20 << 30;
/// The file with the key that digests of secrets are made with.
const SECRET_KEY: &str = "secret.key";
/// A checkpoint that a killed kiln did not complete, and that no ledger knows, is swept after this.
const ABANDONED: Duration = Duration::from_hours(1);
/// A damaged one is kept this long for a look.
const KEPT_ASIDE: Duration = Duration::from_hours(7 * 24);
const DAMAGED: &str = "damaged.json";

/// `<cache>/checkpoints`.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// How much checkpoints may take in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub u64);

/// What was removed to keep a budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: usize,
    pub bytes: u64,
    /// Those that would have gone but are in use.
    pub in_use: usize,
}

impl Store {
    /// Opens the store, made if missing.
    pub fn open(dirs: &Dirs) -> Result<Self, CheckpointError> {
        let store = Self::at(dirs);
        create_private_dir(&store.directory)?;
        Ok(store)
    }

    /// The store without making anything.
    pub fn at(dirs: &Dirs) -> Self {
        Self { directory: dirs.cache.join("checkpoints") }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory for a new layer; nothing is made yet.
    pub(crate) fn place(&self) -> (String, PathBuf) {
        let id = format!("c-{}", &random::nonce()[..16]);
        let directory = self.directory.join(&id);
        (id, directory)
    }

    /// Every complete checkpoint, the newest first.
    pub fn list(&self) -> Vec<Checkpoint> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<_> = names.filter(|name| name.starts_with("c-")).filter_map(|id| self.read(id)).collect();
        found.sort_by(|a, b| (b.record.made, &b.id).cmp(&(a.record.made, &a.id)));
        found
    }

    fn read(&self, id: String) -> Option<Checkpoint> {
        let directory = self.directory.join(&id);
        let record: Record = serde_json::from_slice(&fs::read(directory.join(RECORD)).ok()?).ok()?;
        (record.format == kiln_core::checkpoint::FORMAT).then_some(Checkpoint { id, directory, record })
    }

    /// Keeps the layers of a machine from being removed as long as the lease lives. A layer that is gone, or is just
    /// being removed, is an error.
    pub fn lease(&self, layers: &[String]) -> Result<Lease, CheckpointError> {
        let lock = |id: &String| {
            let directory = self.directory.join(id);
            let lock = Lock::share(&directory).map_err(|_| CheckpointError::LayerGone)?;
            if directory.join(DISK).exists() { Ok(lock) } else { Err(CheckpointError::LayerGone) }
        };
        Ok(Lease { _locks: layers.iter().map(lock).collect::<Result<_, _>>()? })
    }

    /// A lease on a layer that is being made.
    pub(crate) fn hold(&self, id: &str) -> Result<Lease, CheckpointError> {
        Ok(Lease { _locks: vec![Lock::share(&self.directory.join(id))?] })
    }

    /// The disks of the layers, the lowest first.
    pub(crate) fn disks(&self, layers: &[String]) -> Vec<PathBuf> {
        layers.iter().map(|id| self.directory.join(id).join(DISK)).collect()
    }

    /// Reads every layer of a checkpoint and holds it against its checksum.
    pub(crate) fn verify_disks(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for id in &checkpoint.record.layers {
            let below = self.read(id.clone()).ok_or(CheckpointError::LayerGone)?;
            let found = digest_of(&below.directory.join(DISK))?;
            let expected = below.record.disk;
            if found != expected {
                let (expected, found) = (expected.sha256, found.sha256);
                return Err(CheckpointError::Damaged { file: "disk", expected, found });
            }
        }
        Ok(())
    }

    /// The keys of the machine in a checkpoint.
    pub(crate) fn login(checkpoint: &Checkpoint) -> Result<LoginKeys, CheckpointError> {
        let pair = |file: &'static str, line: &str| {
            let path = checkpoint.directory.join(file);
            let private = fs::read_to_string(&path).map_err(failed("read", &path, 0))?;
            Ok::<_, CheckpointError>(KeyPair::restore(Secret::new(private), line)?)
        };
        Ok(LoginKeys {
            login: pair(LOGIN_KEY, &checkpoint.record.login)?,
            host: pair(HOST_KEY, &checkpoint.record.host)?,
        })
    }

    /// Completes the checkpoint in the directory `id`.
    pub(crate) fn complete(&self, id: &str, record: &Record, keys: &LoginKeys) -> Result<(), CheckpointError> {
        let directory = self.directory.join(id);
        write_private(&directory.join(LOGIN_KEY), keys.login.private.reveal().as_bytes())?;
        write_private(&directory.join(HOST_KEY), keys.host.private.reveal().as_bytes())?;
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        Ok(write_atomic(&directory.join(RECORD), &text, 0o600)?)
    }

    /// Notes that a checkpoint and what it stands on were used.
    pub(crate) fn touch(&self, layers: &[String], now: SystemTime) {
        for id in layers {
            // Only the order of eviction depends on it.
            let _ = File::open(self.directory.join(id).join(RECORD)).and_then(|file| file.set_modified(now));
        }
    }

    /// Puts a checkpoint that cannot be used out of the way.
    pub(crate) fn set_aside(&self, id: &str) {
        // It stays where it is: its disk may be a layer of a machine that runs.
        let directory = self.directory.join(id);
        let _ = fs::rename(directory.join(RECORD), directory.join(DAMAGED));
    }

    /// Checkpoints with these keys are not found any more; what nobody uses of them goes at once.
    pub(crate) fn forget(&self, keys: &[Digest]) {
        for checkpoint in self.list().into_iter().filter(|checkpoint| keys.contains(&checkpoint.record.key)) {
            if !remove(&checkpoint.directory) {
                let _ = fs::remove_file(checkpoint.directory.join(RECORD));
            }
        }
    }

    /// Removes the least recently used until the budget holds. What is in use stays, and what others stand on.
    pub fn prune(&self, budget: Budget, now: SystemTime) -> Pruned {
        self.evict(now, |total, _| total > budget.0)
    }

    /// Removes what was not used for `age`.
    pub fn prune_older(&self, age: Duration, now: SystemTime) -> Pruned {
        self.evict(now, |_, used| now.duration_since(used).unwrap_or_default() >= age)
    }

    /// Removes the least recently used as long as `too_much` says so of what there is and when that was used.
    fn evict(&self, now: SystemTime, too_much: impl Fn(u64, SystemTime) -> bool) -> Pruned {
        self.sweep(now);
        let mut pruned = Pruned::default();
        let mut all = self.list();
        let mut busy = BTreeSet::new();
        loop {
            let total: u64 = all.iter().map(Checkpoint::bytes).sum();
            let stood_on: BTreeSet<&String> = all
                .iter()
                .flat_map(|checkpoint| checkpoint.record.layers.iter().filter(|id| **id != checkpoint.id))
                .collect();
            let free = |checkpoint: &&Checkpoint| !stood_on.contains(&checkpoint.id) && !busy.contains(&checkpoint.id);
            let oldest = all.iter().filter(free).map(|checkpoint| (last_used(checkpoint), checkpoint));
            let Some((used, oldest)) = oldest.min_by_key(|(used, _)| *used) else { break };
            if !too_much(total, used) {
                break;
            }
            let oldest = oldest.clone();
            if remove(&oldest.directory) {
                pruned.removed += 1;
                pruned.bytes += oldest.bytes();
                all.retain(|checkpoint| checkpoint.id != oldest.id);
            } else {
                pruned.in_use += 1;
                busy.insert(oldest.id);
            }
        }
        pruned
    }

    /// Removes what a killed kiln left incomplete, and what was set aside long ago.
    fn sweep(&self, now: SystemTime) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            let Ok(age) = changed.map(|changed| now.duration_since(changed).unwrap_or_default()) else { continue };
            let limit = if path.join(DAMAGED).exists() { KEPT_ASIDE } else { ABANDONED };
            if name.starts_with("c-") && !path.join(RECORD).exists() && age > limit {
                remove(&path);
            }
        }
    }

    /// The key that digests of this user's secrets are made with; made if missing and `make`.
    pub(crate) fn secret_key(&self, make: bool) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.directory.join(SECRET_KEY);
        if !path.exists() {
            if !make {
                return Ok(None);
            }
            create_private_dir(&self.directory)?;
            write_private(&path, &random::bytes::<32>())?;
        }
        Ok(Some(fs::read(&path).map_err(failed("read", &path, 0))?))
    }

    /// The budget: `wanted`, else 20 GiB or half of what is free, whichever is less.
    pub fn budget(&self, wanted: Option<u64>) -> Budget {
        let taken: u64 = self.list().iter().map(Checkpoint::bytes).sum();
        let free = free_space(&self.directory).unwrap_or(0);
        Budget(wanted.unwrap_or_else(|| MOST.min(free.saturating_add(taken) / 2)))
    }
}

/// A digest of a secret that means nothing without the key.
pub(crate) fn keyed(key: &[u8], secret: &Secret) -> Digest {
    let inner = Digest::of(&[key, secret.reveal().as_bytes()].concat());
    Digest::of(&[key, inner.as_bytes()].concat())
}

/// Bytes and digest of a file.
pub(crate) fn digest_of(path: &Path) -> Result<Stored, CheckpointError> {
    let mut file = File::open(path).map_err(failed("read", path, 0))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed("read", path, 0))?;
        if read == 0 {
            return Ok(Stored { bytes, sha256: Digest::from_bytes(hash.finalize().into()) });
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// When a checkpoint was last taken or used.
pub fn last_used(checkpoint: &Checkpoint) -> SystemTime {
    let modified = checkpoint.directory.join(RECORD).metadata().and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Removes a directory that nobody uses; says whether it is gone.
fn remove(directory: &Path) -> bool {
    let Ok(_alone) = Lock::take(directory, &format!("kiln with pid {}, which removes it", std::process::id())) else {
        return false;
    };
    // The machine of a build that was kept has no kiln any more.
    if is_open_elsewhere(&directory.join(DISK)) {
        return false;
    }
    let _ = fs::remove_file(directory.join(RECORD));
    fs::remove_dir_all(directory).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
}

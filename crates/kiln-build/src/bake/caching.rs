//! The checkpoints of one bake: where it begins, what it leaves for the next one.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use kiln_core::{
    artifact::StepRecord,
    checkpoint::{Key, keys},
    event::{Event, Phase},
    plan::{CheckpointKind, Plan},
};
use kiln_io::{fs, ledger::EntryId, process, time::Clock};

use super::{BakeContext, BakeError, guest::grow, journal::Journal};
use crate::{
    base::PreparedBase,
    checkpoint::{
        Checkpoint, CheckpointError, Choice, DISK, Fresh, Lease, MEMORY, Ran, Record, Store, Stored, Surroundings,
        Take, Trail, choose, digest_of, ground,
    },
    qemu::{self, Frozen, LoginKeys, NotFrozen, Place, Running, Saved, VmHost, VmSpec},
};

/// What a checkpoint costs until one was measured.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
/// A checkpoint must be worth this many times what it costs.
const WORTH: u64 = 2;
/// Room that is left to everybody else.
const ROOM: u64 = 1 << 30;

/// The checkpoints of one bake.
pub(super) struct Caching<'a> {
    plan: &'a Plan,
    context: &'a BakeContext,
    clock: &'a dyn Clock,
    store: Store,
    keys: Vec<Key>,
    choice: Choice,
    trail: Trail,
    /// Complete layers that the machine stands on, the lowest first.
    layers: Vec<String>,
    /// The layer that it writes to.
    own: String,
    leases: Vec<Lease>,
    origin: String,
    base: String,
    steps: BTreeMap<usize, Ran>,
    /// Milliseconds of work since the last checkpoint.
    since: u64,
    /// Milliseconds that one costs.
    pause: u64,
    /// The machine was booted in this bake.
    pub(super) booted: bool,
    /// No more checkpoints in this bake.
    over: bool,
    unfinished: Option<Unfinished>,
}

/// A checkpoint whose disk is still being read for its checksum, while the guest works on.
struct Unfinished {
    record: Record,
    keys: LoginKeys,
    id: String,
    entry: EntryId,
    disk: tokio::task::JoinHandle<Result<Stored, CheckpointError>>,
}

impl std::fmt::Debug for Caching<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caching").field("layers", &self.layers).finish_non_exhaustive()
    }
}

impl<'a> Caching<'a> {
    pub(super) async fn begin(
        plan: &'a Plan,
        context: &'a BakeContext,
        clock: &'a dyn Clock,
        base: &PreparedBase,
        machine: &VmSpec,
    ) -> Result<Self, BakeError> {
        let store = Store::open(&context.dirs)?;
        let qemu = process::version("qemu-system-x86_64").await?;
        let library = &context.library;
        let around = Surroundings { base: &base.record, machine, qemu: &qemu, library, store: &store, may_write: true };
        let keys = keys(plan, &ground(plan, around)?);
        // What is made anew must not come back in the next build because an older one got further.
        let anew = match context.checkpoints.fresh {
            Fresh::None => None,
            Fresh::From(step) => Some(step),
            Fresh::All => Some(0),
        };
        if let Some(from) = anew {
            let keys: Vec<_> = keys.iter().filter(|key| key.number >= from).map(|key| key.digest).collect();
            store.forget(&keys);
        }
        let trail = Trail::read(&context.dirs, &plan.image);
        let choice = choose(&keys, &store, &trail, &context.checkpoints, seconds(clock));
        let disk_only = plan.builder.qemu().is_some_and(|asked| asked.checkpoints == CheckpointKind::Disk);
        let last = store.list().into_iter().find(|last| last.is_disk_only() == disk_only);
        let pause = last.map_or(FIRST_PAUSE.as_millis(), |last| u128::from(last.record.pause));
        Ok(Self {
            plan,
            context,
            clock,
            store,
            keys,
            choice,
            trail,
            layers: Vec::new(),
            own: String::new(),
            leases: Vec::new(),
            origin: context.build.clone(),
            base: base.record.name.clone(),
            steps: BTreeMap::new(),
            since: 0,
            pause: u64::try_from(pause).unwrap_or(u64::MAX),
            booted: false,
            over: context.checkpoints.take == Take::Off,
            unfinished: None,
        })
    }

    /// A machine to work in: from the deepest checkpoint that can be used, else booted.
    pub(super) async fn machine<'h>(
        &mut self,
        spec: &VmSpec,
        host: VmHost<'h>,
        journal: &mut Journal<'_>,
    ) -> Result<Running<'h>, BakeError> {
        for (attempt, checkpoint) in std::mem::take(&mut self.choice.usable).into_iter().enumerate() {
            let name = if attempt == 0 { "vm".to_owned() } else { format!("vm-{}", attempt + 1) };
            let back = Box::pin(self.resume(&checkpoint, VmSpec { name, ..spec.clone() }, host, journal));
            match back.await {
                Ok(vm) => return Ok(vm),
                Err(CheckpointError::Cancelled) => return Err(BakeError::Cancelled),
                // Somebody made room since it was found.
                Err(CheckpointError::LayerGone) => {}
                Err(error) => {
                    self.store.set_aside(&checkpoint.id);
                    let message = format!(
                        "the checkpoint after {} cannot be used ({error}); it is set aside in `{}`, and the one before it is tried",
                        place(checkpoint.record.number, &checkpoint.record.name),
                        checkpoint.directory.display()
                    );
                    self.context.events.emit(Event::Warning { message });
                }
            }
            // Why steps have to run is another question now.
            let wish = &self.context.checkpoints;
            self.choice.misses = choose(&self.keys, &self.store, &self.trail, wish, seconds(self.clock)).misses;
        }
        self.tell_misses();
        let name = if host.guard.ended("vm").is_some() { "vm-booted" } else { "vm" };
        // What will never be a checkpoint is the build's own.
        let overlay = if self.over { None } else { Some(self.new_place(host)?) };
        let spec = VmSpec { name: name.to_owned(), overlay, ..spec.clone() };
        let start = self.clock.monotonic();
        let boot = Box::pin(async {
            let vm = qemu::boot(spec, host).await.map_err(BakeError::boot)?;
            grow(vm.guest()).await?;
            Ok::<_, BakeError>(vm)
        });
        let vm = journal.phase(Phase::Boot, &self.base, boot, |_| "the guest answers over SSH".to_owned()).await?;
        self.booted = true;
        self.ran(0, None, self.clock.monotonic().saturating_sub(start));
        Ok(vm)
    }

    async fn resume<'h>(
        &mut self,
        checkpoint: &Checkpoint,
        spec: VmSpec,
        host: VmHost<'h>,
        journal: &mut Journal<'_>,
    ) -> Result<Running<'h>, CheckpointError> {
        let record = &checkpoint.record;
        let lease = self.store.lease(&record.layers)?;
        let keys = Store::login(checkpoint)?;
        let overlay = self.new_place(host)?;
        let spec = VmSpec { layers: self.store.disks(&record.layers), overlay: Some(overlay), ..spec };
        let verified = {
            let (store, checkpoint) = (self.store.clone(), checkpoint.clone());
            tokio::task::spawn_blocking(move || store.verify_disks(&checkpoint))
        };
        if checkpoint.is_disk_only() {
            let what = format!("after {}", place(record.number, &record.name));
            let boot = async {
                verified.await.unwrap_or(Err(CheckpointError::Cancelled))?;
                Box::pin(qemu::boot_again(spec, host, keys, &record.origin)).await
            };
            let vm = journal.phase(Phase::Boot, &what, boot, |_| "the guest answers over SSH".to_owned()).await?;
            self.went_on(checkpoint, lease);
            return Ok(vm);
        }
        let memory = checkpoint.directory.join(MEMORY);
        let (origin, boot_id, nonce) = (record.origin.as_str(), record.boot_id.as_str(), record.nonce.as_str());
        let saved = Saved { keys, origin, memory: &memory, stored: record.memory, verified, boot_id, nonce };
        let what = format!("after {}", place(record.number, &record.name));
        let vm = journal
            .phase(Phase::Resume, &what, Box::pin(qemu::resume(spec, host, saved)), |_| {
                "the guest answers over SSH".to_owned()
            })
            .await?;
        self.went_on(checkpoint, lease);
        Ok(vm)
    }

    /// The machine is that of `checkpoint`.
    fn went_on(&mut self, checkpoint: &Checkpoint, lease: Lease) {
        let record = &checkpoint.record;
        self.store.touch(&record.layers, self.clock.wall());
        self.leases.push(lease);
        self.layers.clone_from(&record.layers);
        self.origin.clone_from(&record.origin);
        self.steps.clone_from(&record.steps);
        self.since = 0;
        self.context.events.emit(Event::CheckpointUsed {
            number: record.number,
            name: record.name.clone(),
            made: record.made,
            bytes: checkpoint.bytes(),
            saved: checkpoint.saves(),
        });
        self.tell_misses();
    }

    fn tell_misses(&self) {
        if self.context.checkpoints.take == Take::Off {
            return;
        }
        if let Some(miss) = self.choice.misses.first() {
            let (number, name, reason) = (miss.number, miss.name.clone(), miss.reason.clone());
            self.context.events.emit(Event::CheckpointMissed { number, name, reason });
        }
    }

    /// A directory for the overlay of a machine; in the ledger before it exists.
    fn new_place(&mut self, host: VmHost<'_>) -> Result<Place, CheckpointError> {
        let (id, directory) = self.store.place();
        let entry = host.ledger.acquire_directory("overlay", &directory)?;
        fs::create_private_dir(&directory)?;
        self.leases.push(self.store.hold(&id)?);
        self.own = id;
        Ok(Place { directory, entry })
    }

    /// The record of a step that is in the machine already.
    pub(super) fn cached(&self, number: usize) -> Option<(StepRecord, u64)> {
        let ran = self.steps.get(&number)?;
        Some((ran.record.clone()?, ran.at))
    }

    /// Notes what ran, for the next bake's explanations and for the next checkpoint.
    pub(super) fn ran(&mut self, number: usize, record: Option<StepRecord>, took: Duration) {
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let at = seconds(self.clock);
        self.steps.insert(number, Ran { at, milliseconds, record });
        self.since += milliseconds;
        let known = self.keys.iter().filter(|key| key.number <= number).cloned().collect();
        let took = self.steps.iter().map(|(number, ran)| (*number, ran.milliseconds)).collect();
        let trail = Trail { keys: known, took };
        if let Err(error) = trail.write(&self.context.dirs, &self.plan.image) {
            let message = format!("the next bake will not know why steps run: {error}");
            self.context.events.emit(Event::Warning { message });
        }
    }

    fn kind(&self) -> CheckpointKind {
        self.plan.builder.qemu().map(|machine| machine.checkpoints).unwrap_or_default()
    }

    /// Takes a checkpoint after a step (0: the boot), if it is worth it.
    pub(super) async fn after(&mut self, number: usize, vm: &Running<'_>, host: VmHost<'_>) -> Result<(), BakeError> {
        let Some(key) = self.keys.iter().find(|key| key.number == number).cloned() else { return Ok(()) };
        // Of a machine that has just booted, the disk alone is worth nothing.
        let usable = self.keys.iter().all(|key| key.number > number || key.good_for > 0)
            && (number > 0 || self.kind() == CheckpointKind::Memory);
        let worth = match self.context.checkpoints.take {
            Take::Off => false,
            Take::Every => true,
            Take::Auto => self.since >= self.pause.saturating_mul(WORTH),
        };
        if self.over || !usable || !worth {
            return Ok(());
        }
        let memory = self.plan.builder.qemu().map_or(0, |machine| machine.memory.bytes());
        if fs::free_space(self.store.directory()).unwrap_or(0) < memory + ROOM {
            self.give_up("the disk has no room for them");
            return Ok(());
        }
        self.settle(host).await;
        let own = self.own.clone();
        let next = self.new_place(host)?;
        let frozen = match self.kind() {
            CheckpointKind::Memory => vm.freeze(next.directory, next.entry).await,
            CheckpointKind::Disk => vm.freeze_disk(next.directory, next.entry).await,
        };
        match frozen {
            Ok(frozen) => self.begin_record(key, own, frozen, vm),
            Err(NotFrozen { error: CheckpointError::Cancelled, .. }) => return Err(BakeError::Cancelled),
            Err(NotFrozen { error, runs: true }) => self.give_up(&error.to_string()),
            Err(NotFrozen { error, runs: false }) => return Err(error.into()),
        }
        Ok(())
    }

    fn begin_record(&mut self, key: Key, id: String, frozen: Frozen, vm: &Running<'_>) {
        self.pause = u64::try_from(frozen.pause.as_millis()).unwrap_or(u64::MAX);
        self.since = 0;
        self.layers.push(id.clone());
        let disk: PathBuf = frozen.directory.join(DISK);
        let record = Record {
            format: kiln_core::checkpoint::FORMAT,
            key: key.digest,
            image: self.plan.image.to_string(),
            origin: self.origin.clone(),
            number: key.number,
            name: key.name,
            made: seconds(self.clock),
            pause: self.pause,
            layers: self.layers.clone(),
            disk: Stored { bytes: 0, sha256: key.digest },
            memory: frozen.memory,
            login: vm.keys().login.public.line(),
            host: vm.keys().host.public.line(),
            boot_id: frozen.boot_id,
            nonce: frozen.nonce,
            steps: self.steps.clone(),
        };
        let disk = tokio::task::spawn_blocking(move || digest_of(&disk));
        self.unfinished = Some(Unfinished { record, keys: vm.keys().clone(), id, entry: frozen.entry, disk });
    }

    /// Completes the checkpoint that was taken last, and keeps the budget.
    pub(super) async fn settle(&mut self, host: VmHost<'_>) {
        let Some(Unfinished { mut record, keys, id, entry, disk }) = self.unfinished.take() else { return };
        let stored = disk.await.unwrap_or(Err(CheckpointError::Cancelled));
        let done = stored.and_then(|stored| {
            record.disk = stored;
            self.store.complete(&id, &record, &keys)?;
            Ok(host.ledger.release(&entry)?)
        });
        if let Err(error) = done {
            return self.give_up(&error.to_string());
        }
        self.context.events.emit(Event::CheckpointTaken {
            number: record.number,
            name: record.name.clone(),
            pause: record.pause,
            bytes: record.disk.bytes + record.memory.bytes,
        });
        self.store.prune(self.store.budget(self.context.checkpoints.budget), self.clock.wall());
    }

    fn give_up(&mut self, reason: &str) {
        self.over = true;
        let message = format!("no more checkpoints in this build: {reason}");
        self.context.events.emit(Event::Warning { message });
    }
}

/// `step 3 packages`, `the boot`.
fn place(number: usize, name: &str) -> String {
    if number == 0 { "the boot".to_owned() } else { format!("step {number} {name}") }
}

fn seconds(clock: &dyn Clock) -> u64 {
    clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

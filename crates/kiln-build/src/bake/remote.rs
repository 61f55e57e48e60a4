//! A bake in a machine that somebody else runs: the same steps, checks and cleaning, then its disk as a file here.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kiln_core::{
    Digest,
    artifact::{BaseRecord, BootRecord, CheckRecord, Machine as MachineRecord},
    event::{CheckedOn, Event, Phase, Unit},
    plan::{Ami, Ec2Machine, Login, Plan},
};
use kiln_disk::DiskFile;
use kiln_io::{
    fs,
    guest::{Access, Command, Guest as _, GuestError, Quiet},
    ledger::Ledger,
    ssh::{PRIVATE, SshGuest, Target},
    time::{Attempt, Clock, GaveUp, Policy, poll_until},
};

use super::{
    BakeContext, BakeError, Provisioned, Stopped,
    artifact::About,
    guest::{self, Said, Work},
    journal::Journal,
    keeps,
};
use crate::{
    check::{CheckRun, run_checks},
    qemu::{LoginKeys, POWER_OFF},
    remote::{Machine, Machines, Order, SealedDisk},
};

/// One attempt to connect and log in.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How long the order to power off may take to be heard.
const ORDER: Duration = Duration::from_secs(15);

/// What the files that a machine is reached with begin with.
const BAKE: &str = "";
const TRIAL: &str = "trial.";
/// How many processors there are, and how many KiB of memory.
const SIZE: &str = "nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";

/// What a bake in such a machine needs.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) plan: &'a Plan,
    pub(super) machine: &'a Ec2Machine,
    pub(super) ami: &'a Ami,
    pub(super) context: &'a BakeContext,
    pub(super) ledger: &'a Ledger,
    pub(super) clock: &'a dyn Clock,
}

/// From nothing to the disk of a machine that was provisioned, checked, cleaned and shut down. `None` when it stays for a person.
pub(super) async fn provision(
    scene: Scene<'_>,
    journal: &mut Journal<'_>,
) -> Result<Option<(Provisioned, About)>, Stopped> {
    let Scene { context, ledger, .. } = scene;
    let machines = scene.machines()?;
    let keys = LoginKeys::fresh().map_err(BakeError::boot)?;
    let what = format!("an instance in {}", scene.machine.region);
    let boot = async {
        let machine = machines.start(scene.order(&keys), &scene.ami.ami).await.map_err(BakeError::remote)?;
        scene.reached(machine, BAKE, &keys).await
    };
    let (machine, guest) = journal.phase(Phase::Boot, &what, boot, |(machine, _)| machine.place().what.clone()).await?;
    let machine = machine.as_ref();
    let size = size(&guest).await;
    let done = tokio::select! {
        done = scene.work(&guest, &keys, journal) => done,
        trouble = machine.watch() => Err(BakeError::remote(trouble)),
    };
    match done {
        Ok(guest::Reached::Step) => {
            keep(ledger, &guest)?;
            return Ok(None);
        }
        Ok(guest::Reached::End) => {}
        Err(error) => {
            let keep_it = keeps(context, &error).await;
            if keep_it {
                keep(ledger, &guest)?;
                return Err(Stopped { error, keep: true });
            }
            return Err(let_down(machine, error).await.into());
        }
    }
    match scene.bring_home(machine, guest, journal).await {
        Ok((disk, entry)) => {
            let layers = vec![DiskFile::raw(&disk)];
            let about = scene.about(machine, size);
            Ok(Some((Provisioned { layers, disk, entry, keys }, about)))
        }
        Err(error) => Err(let_down(machine, error).await.into()),
    }
}

/// Starts a machine from the sealed disk, as machines will start from what is made of it, and runs the checks meant for it.
pub(super) async fn test(scene: Scene<'_>, disk: SealedDisk<'_>, journal: &mut Journal<'_>) -> Result<(), BakeError> {
    let machines = scene.machines()?;
    let keys = LoginKeys::fresh().map_err(BakeError::boot)?;
    let what = format!("an instance of the sealed image in {}", scene.machine.region);
    let test = async {
        let machine = machines.try_out(scene.order(&keys), disk).await.map_err(BakeError::remote)?;
        let (machine, guest) = scene.reached(machine, TRIAL, &keys).await.map_err(BakeError::trial)?;
        let run = CheckRun {
            guest: &guest,
            on: CheckedOn::Artifact,
            events: scene.context.events.as_ref(),
            clock: scene.clock,
            cancel: &scene.context.cancel,
        };
        let checked = tokio::select! {
            checked = run_checks(run, &scene.plan.checks) => checked.map_err(BakeError::artifact_check),
            trouble = machine.watch() => Err(BakeError::remote(trouble)),
        };
        match checked {
            Ok(passed) => machine.release().await.map(|()| passed).map_err(BakeError::remote),
            Err(error) => Err(let_down(machine.as_ref(), error).await),
        }
    };
    let words = |passed: &Vec<CheckRecord>| format!("it boots, {} checks passed", passed.len());
    let passed = journal.phase(Phase::BootTest, &what, test, words).await?;
    journal.checks.extend(passed);
    Ok(())
}

/// The processors and the memory that the guest sees; zeros when it does not say.
async fn size(guest: &SshGuest) -> (u32, u64) {
    let said = Said::default();
    let asked = guest.run(&Command::new(SIZE, ORDER), &said).await;
    let text = said.text();
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
    let (cpus, kib) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if asked.is_ok() { (u32::try_from(cpus).unwrap_or(0), kib << 10) } else { (0, 0) }
}

/// The machine goes, whatever else; what of it cannot go stands in the ledger.
async fn let_down(machine: &dyn Machine, error: BakeError) -> BakeError {
    match machine.release().await {
        Ok(()) => error,
        Err(left) => BakeError::Left { error: Box::new(error), left: vec![left.message] },
    }
}

/// Leaves the machine running for `kiln ssh`.
fn keep(ledger: &Ledger, guest: &SshGuest) -> Result<(), BakeError> {
    let Some(access) = guest.access() else { return Ok(()) };
    let path = ledger.directory().join(Access::FILE);
    ledger.acquire_file("access file", &path)?;
    let text = serde_json::to_vec_pretty(&access).map_err(BakeError::Record)?;
    Ok(fs::write_private(&path, &text)?)
}

impl<'a> Scene<'a> {
    fn machines(&self) -> Result<&'a dyn Machines, BakeError> {
        self.context.machines.as_deref().ok_or(BakeError::NoMachines)
    }

    fn order<'b>(&self, keys: &'b LoginKeys) -> Order<'b>
    where
        'a: 'b,
    {
        Order {
            plan: self.plan,
            machine: self.machine,
            build: &self.context.build,
            ledger: self.ledger,
            keys,
            cancel: &self.context.cancel,
        }
    }

    /// The machine once it can be talked to. When it cannot, it goes.
    async fn reached(
        &self,
        machine: Box<dyn Machine>,
        name: &str,
        keys: &LoginKeys,
    ) -> Result<(Box<dyn Machine>, SshGuest), BakeError> {
        match self.reach(machine.as_ref(), name, keys).await {
            Ok(guest) => Ok((machine, guest)),
            Err(error) => Err(let_down(machine.as_ref(), error).await),
        }
    }

    /// Waits for SSH while it watches the machine.
    async fn reach(&self, machine: &dyn Machine, name: &str, keys: &LoginKeys) -> Result<SshGuest, BakeError> {
        let place = machine.place();
        let file = |what: &str, bytes: &[u8]| -> Result<PathBuf, BakeError> {
            let path = self.ledger.directory().join(format!("{name}{what}"));
            self.ledger.acquire_file(what, &path)?;
            fs::write_private(&path, bytes)?;
            Ok(path)
        };
        let target = Target {
            host: place.host.clone(),
            port: place.port,
            user: place.user.clone(),
            proxy: place.proxy.clone(),
            host_key: keys.host.public.clone(),
            login: keys.login.clone(),
            key_file: file("key", keys.login.private.reveal().as_bytes())?,
            known_hosts: file("known_hosts", keys.host.public.known_hosts(&place.host, place.port).as_bytes())?,
            attempt: ATTEMPT,
            return_within: self.machine.boot_timeout,
            private: PRIVATE.into(),
        };
        let limit = self.machine.boot_timeout;
        let policy = Policy { first: Duration::from_millis(250), max: Duration::from_secs(2), deadline: limit };
        let cancel = &self.context.cancel;
        // It may answer with keys of its own before cloud-init has put ours in their place.
        let connected = poll_until(self.clock, policy, cancel, || async {
            match SshGuest::connect(target.clone(), cancel.clone()).await {
                Ok(guest) => Attempt::Done(guest),
                Err(GuestError::Cancelled) => Attempt::Stop(GuestError::Cancelled),
                Err(error) => Attempt::Again(error),
            }
        });
        let connected = tokio::select! {
            biased;
            trouble = machine.watch() => return Err(BakeError::remote(trouble)),
            connected = connected => connected,
        };
        match connected {
            Ok(guest) => Ok(guest),
            Err(GaveUp::Cancelled | GaveUp::Stopped(_)) => Err(BakeError::Cancelled),
            Err(GaveUp::Deadline(source)) => {
                let (address, console) = (format!("{}:{}", place.host, place.port), machine.console().await);
                Err(BakeError::Unreachable { what: place.what.clone(), address, limit, console, source })
            }
        }
    }

    async fn work(
        &self,
        guest: &SshGuest,
        keys: &LoginKeys,
        journal: &mut Journal<'_>,
    ) -> Result<guest::Reached, BakeError> {
        let Self { plan, context, clock, .. } = *self;
        let work = Work { plan, checks: &plan.checks, context, clock, directory: self.ledger.directory() };
        work.run_in(guest, keys, journal).await
    }

    /// Powers the machine off, takes its disk, and gives everything else back.
    async fn bring_home(
        &self,
        machine: &dyn Machine,
        guest: SshGuest,
        journal: &mut Journal<'_>,
    ) -> Result<(PathBuf, kiln_io::ledger::EntryId), BakeError> {
        let off = async {
            machine.let_go().await.map_err(BakeError::remote)?;
            let order = Command { reboots: true, ..Command::new(POWER_OFF, ORDER) };
            // The connection may well break under it; whether it was heard shows in the machine's state.
            let _ = guest.run(&order, &Quiet).await;
            Ok::<_, BakeError>(())
        };
        journal.phase(Phase::Shutdown, "", off, |()| "told to power off".to_owned()).await?;
        let path = self.ledger.directory().join("disk.raw");
        let entry = self.ledger.acquire_file("disk", &path)?;
        let events = self.context.events.as_ref();
        let progress =
            |done, total| events.emit(Event::Progress { phase: Phase::Download, done, total, unit: Unit::Bytes });
        let fetch = async { machine.disk(&path, &progress).await.map_err(BakeError::remote) };
        let words = |bytes: &u64| kiln_core::ByteSize(*bytes).to_string();
        journal.phase(Phase::Download, "the machine's disk", fetch, words).await?;
        machine.release().await.map_err(BakeError::remote)?;
        Ok((path, entry))
    }

    /// What the record says of base and machine.
    fn about(&self, machine: &dyn Machine, (cpus, memory): (u32, u64)) -> About {
        About {
            base: base(&self.machine.region, self.ami),
            // Its user data came through cloud-init, so a seed will, too.
            boot: BootRecord { login: Login::Nocloud, command_line: None },
            machine: MachineRecord {
                builder: "ec2".to_owned(),
                accelerator: machine.place().kind.clone(),
                reason: machine.place().what.clone(),
                memory,
                cpus,
            },
            tools: BTreeMap::new(),
        }
    }
}

/// An AMI has no file that could be hashed, and its id never means anything else: the digests are those of the id.
fn base(region: &str, found: &Ami) -> BaseRecord {
    let name = format!("ami://{region}/{}", found.ami);
    let digest = Digest::of(name.as_bytes());
    BaseRecord { digest, key: digest, name, parent: found.parent.clone() }
}

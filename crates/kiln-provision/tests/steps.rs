//! Running a step: retries, lost connections, reboots, time limits, evidence. On a guest that answers as it is told.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use kiln_core::{
    event::{Event, Events, Outcome, Stream},
    facts::{Facts as _, Inputs, TemplateText},
    plan::Plan,
    template,
};
use kiln_io::{
    guest::{Access, Command, Entry, Exit, Guest, GuestError, Output, Progress},
    time::TestClock,
};
use kiln_provision::{
    HostFacts, Library, StepRun,
    error::{Fault, StepError},
    run_step,
};
use tokio_util::sync::CancellationToken;

/// What the guest does with one command.
enum Reply {
    Exit(i32, &'static str, &'static str),
    Error(GuestError),
}

#[derive(Debug)]
struct Told {
    replies: Mutex<VecDeque<Reply>>,
    commands: Mutex<Vec<Command>>,
    uploads: Mutex<Vec<(String, Vec<Entry>)>>,
    boot: Mutex<u32>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

impl Told {
    fn new(replies: Vec<Reply>) -> Self {
        Self {
            replies: Mutex::new(replies.into()),
            commands: Mutex::default(),
            uploads: Mutex::default(),
            boot: Mutex::new(1),
        }
    }

    fn scripts(&self) -> Vec<String> {
        self.commands.lock().unwrap().iter().map(|command| command.script.clone()).collect()
    }
}

#[async_trait]
impl Guest for Told {
    async fn run(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError> {
        self.commands.lock().unwrap().push(command.clone());
        let reply = self.replies.lock().unwrap().pop_front();
        match reply.unwrap_or(Reply::Exit(0, "", "")) {
            Reply::Exit(code, stdout, stderr) => {
                output.write(Stream::Stdout, stdout.as_bytes());
                output.write(Stream::Stderr, stderr.as_bytes());
                Ok(Exit::Code(code))
            }
            Reply::Error(error) => {
                output.write(Stream::Stdout, b"Do you want to continue? [Y/n] ");
                Err(error)
            }
        }
    }

    async fn upload(&self, directory: &str, entries: &[Entry], progress: &dyn Progress) -> Result<(), GuestError> {
        self.uploads.lock().unwrap().push((directory.to_owned(), entries.to_vec()));
        progress.at(1);
        Ok(())
    }

    async fn download(&self, _: &str, _: &Path) -> Result<u64, GuestError> {
        Ok(0)
    }

    async fn exchange(&self, _: &str, _: u16, _: &[u8], _: usize, _: Duration) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }

    async fn boot_id(&self) -> Result<String, GuestError> {
        Ok(self.boot.lock().unwrap().to_string())
    }

    async fn reconnect_after_reboot(&self, _: &str, _: Duration) -> Result<(), GuestError> {
        *self.boot.lock().unwrap() += 1;
        Ok(())
    }

    fn access(&self) -> Option<Access> {
        None
    }
}

#[derive(Debug, Default)]
struct Log(Mutex<Vec<Event>>);

impl Events for Log {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Log {
    fn warnings(&self) -> usize {
        self.0.lock().unwrap().iter().filter(|event| matches!(event, Event::Warning { .. })).count()
    }

    fn outcome(&self) -> Outcome {
        match self.0.lock().unwrap().last() {
            Some(Event::StepFinished { outcome, .. }) => *outcome,
            other => panic!("the last event is {other:?}"),
        }
    }
}

/// A plan with one step, as a template would make it.
fn plan(directory: &Path, step: &str) -> (Plan, HostFacts) {
    let name = directory.join("template.toml");
    let facts = HostFacts::with_library(Library::for_template(directory));
    let text = format!("[image]\nname = \"test\"\n[base.debian]\nsuite = \"bookworm\"\n[[provision]]\n{step}\n");
    let entry = TemplateText { name: name.display().to_string(), text };
    let plans = template::load(&entry, &facts).and_then(|template| template.plans(&Inputs::default(), &facts));
    (plans.unwrap_or_else(|mistakes| panic!("{}", mistakes.render())).remove(0), facts)
}

struct Ran {
    result: Result<kiln_core::artifact::StepRecord, StepError>,
    guest: Told,
    log: Log,
}

async fn run_in(directory: &Path, step: &str, replies: Vec<Reply>) -> Ran {
    let (plan, facts) = plan(directory, step);
    let (guest, log) = (Told::new(replies), Log::default());
    let clock = TestClock::at(SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
    let result = run_step(StepRun {
        guest: &guest,
        step: &plan.steps[0],
        total: 3,
        library: facts.library(),
        secrets: &BTreeMap::new(),
        events: &log,
        clock: &clock,
        cancel: &CancellationToken::new(),
        work: &directory.join("work"),
    })
    .await;
    Ran { result, guest, log }
}

async fn run(step: &str, replies: Vec<Reply>) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), step, replies).await
}

const SHELL: &str = "use = \"shell\"\nscript = \"true\"";
const PACKAGES: &str = "use = \"packages\"\ninstall = [\"nginx\"]";

fn lost() -> Reply {
    Reply::Error(GuestError::Lost { during: "run".to_owned(), after: Duration::from_secs(7) })
}

#[tokio::test]
async fn a_step_costs_one_request() {
    let ran = run(SHELL, vec![]).await;
    let record = ran.result.unwrap();
    assert_eq!((record.name.as_str(), record.outcome.as_str()), ("shell", "ok"));
    let commands = ran.guest.commands.lock().unwrap();
    let bundle = commands[0].bundle.as_ref().unwrap();
    assert_eq!((commands.len(), bundle.directory.as_str()), (1, "/run/kiln/step-1"));
    assert!(ran.guest.uploads.lock().unwrap().is_empty());
    assert_eq!(ran.log.outcome(), Outcome::Ok);
    let paths: Vec<&str> = bundle.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["inputs", "inputs/script", "options.json", "run"]);
}

#[tokio::test]
async fn a_skipped_step_is_told_and_not_run() {
    let ran = run(&format!("{SHELL}\nwhen = \"false\""), vec![]).await;
    assert_eq!(ran.result.unwrap().outcome, "skipped");
    assert_eq!((ran.log.outcome(), ran.guest.scripts().len()), (Outcome::Skipped, 0));
}

#[tokio::test]
async fn a_failure_names_provisioner_place_status_and_last_words() {
    let ran =
        run(SHELL, vec![Reply::Exit(3, "working\n", "first\nE: broken\n"), Reply::Exit(0, "clock 1800000000\n", "")])
            .await;
    let error = ran.result.unwrap_err();
    assert_eq!(error.to_string(), "provisioner `shell` failed at step 1 of 3");
    assert_eq!(error.fault.to_string(), "`shell/run` exited with status 3; its last words:\n    first\n    E: broken");
    assert_eq!(ran.log.outcome(), Outcome::Failed);
}

#[tokio::test]
async fn a_full_disk_is_shown_with_the_way_out() {
    let answer = "clock 1800000000\nfull / 1000000 0\n";
    let ran = run(SHELL, vec![Reply::Exit(1, "", "tar: write error\n"), Reply::Exit(0, answer, "")]).await;
    let error = ran.result.unwrap_err();
    assert!(error.fault.to_string().contains("tar: write error"), "{}", error.fault);
    assert!(error.fault.to_string().contains("the guest's `/` is full: 0 B free of 976.5 MiB"), "{}", error.fault);
    assert!(error.hint().unwrap().contains("larger `disk`"));
}

#[tokio::test]
async fn a_guest_in_1970_is_told_apart_from_a_broken_mirror() {
    let ran =
        run(PACKAGES, vec![Reply::Exit(100, "", "certificate is not yet valid\n"), Reply::Exit(0, "clock 60\n", "")])
            .await;
    let error = ran.result.unwrap_err();
    assert!(error.fault.to_string().contains("20833 days behind the build host's"), "{}", error.fault);
}

#[tokio::test]
async fn a_step_that_may_not_be_repeated_ends_with_an_unknown_outcome_when_the_connection_is_lost() {
    let ran = run(SHELL, vec![lost()]).await;
    let error = ran.result.unwrap_err();
    assert!(matches!(error.fault, Fault::Unknown { .. }), "{}", error.fault);
    assert!(error.fault.to_string().contains("its outcome is unknown"));
    assert_eq!(ran.guest.scripts().len(), 1);
}

#[tokio::test]
async fn a_step_that_may_be_repeated_is_repeated_once_after_a_lost_connection() {
    let ran = run(PACKAGES, vec![lost(), Reply::Exit(0, "", "")]).await;
    ran.result.unwrap();
    assert_eq!((ran.guest.scripts().len(), ran.log.warnings()), (2, 1));
    let ran = run(PACKAGES, vec![lost(), lost()]).await;
    assert!(matches!(ran.result.unwrap_err().fault, Fault::Guest(GuestError::Lost { .. })));
}

#[tokio::test]
async fn retries_count_and_the_last_failure_stands() {
    let step = format!("{PACKAGES}\nretries = 2");
    let diagnosis = || Reply::Exit(0, "", "");
    let ran =
        run(&step, vec![Reply::Exit(100, "", "one"), diagnosis(), Reply::Exit(100, "", "two"), diagnosis()]).await;
    ran.result.unwrap();
    assert_eq!(ran.log.warnings(), 2);
    let failing = ["one", "two", "three"].into_iter().flat_map(|text| [Reply::Exit(100, "", text), diagnosis()]);
    let ran = run(&step, failing.collect()).await;
    assert!(ran.result.unwrap_err().fault.to_string().contains("three"));
    assert_eq!(ran.guest.scripts().len(), 6);
}

#[tokio::test]
async fn an_unwanted_reboot_is_an_error_that_names_the_way_to_want_it() {
    let rebooted = Reply::Error(GuestError::Rebooted { during: "run".to_owned() });
    let ran = run(PACKAGES, vec![rebooted]).await;
    let error = ran.result.unwrap_err();
    assert!(error.fault.to_string().contains("its boot id changed"), "{}", error.fault);
    assert!(error.hint().unwrap().contains("use = \"reboot\""));
    assert_eq!(ran.guest.scripts().len(), 1);
}

#[tokio::test]
async fn a_wanted_reboot_waits_for_the_new_boot() {
    let ran = run("use = \"reboot\"", vec![lost()]).await;
    ran.result.unwrap();
    assert_eq!(*ran.guest.boot.lock().unwrap(), 2);
    assert!(ran.guest.commands.lock().unwrap()[0].reboots);
}

#[tokio::test]
async fn a_step_that_waits_for_an_answer_shows_the_question_and_its_processes() {
    let tree = "\n  1 sh\n  2  \\_ apt-get install".to_owned();
    let out = Reply::Error(GuestError::TimedOut { limit: Duration::from_mins(15), tree });
    let ran = run(SHELL, vec![out]).await;
    let error = ran.result.unwrap_err();
    let text = error.fault.to_string();
    assert!(text.contains("timed out after 900s") && text.contains("apt-get install"), "{text}");
    assert!(text.contains("Do you want to continue? [Y/n]"), "{text}");
    assert!(error.hint().unwrap().contains("stdin is closed"));
}

#[tokio::test]
async fn large_inputs_go_up_for_themselves_to_the_disk_and_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("blob"), vec![7; 9 << 20]).unwrap();
    let ran = run_in(directory.path(), "use = \"files\"\nfiles = [{ path = \"/x\", source = \"blob\" }]", vec![]).await;
    ran.result.unwrap();
    let uploads = ran.guest.uploads.lock().unwrap();
    assert_eq!(uploads[0].0, "/var/tmp/kiln-step-1");
    assert!(uploads[0].1.iter().any(|entry| entry.path == Path::new("inputs/files.0.source/blob")));
    assert!(ran.guest.scripts().last().unwrap().contains("rm -rf /var/tmp/kiln-step-1"));
}

#[tokio::test]
async fn programs_go_to_the_disk_under_the_names_the_template_gives_them() {
    let directory = tempfile::tempdir().unwrap();
    let tool = directory.path().join("tool-1.2");
    fs::write(&tool, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("tool-1.2", directory.path().join("tool")).unwrap();
    let ran = run_in(directory.path(), "use = \"shell\"\nfile = \"tool\"", vec![]).await;
    ran.result.unwrap();
    let commands = ran.guest.commands.lock().unwrap();
    let bundle = commands[0].bundle.as_ref().unwrap();
    assert_eq!(bundle.directory, "/var/tmp/kiln-step-1");
    assert!(bundle.entries.iter().any(|entry| entry.path == Path::new("inputs/file/tool")));
    assert_eq!(commands[0].env["KILN_OPT_FILE"], "/var/tmp/kiln-step-1/inputs/file/tool");
}

#[tokio::test]
async fn an_input_that_changed_since_the_plan_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("motd"), "planned").unwrap();
    let (plan, facts) =
        plan(directory.path(), "use = \"files\"\nfiles = [{ path = \"/etc/motd\", source = \"motd\" }]");
    fs::write(directory.path().join("motd"), "changed").unwrap();
    let (guest, log) = (Told::new(vec![]), Log::default());
    let result = run_step(StepRun {
        guest: &guest,
        step: &plan.steps[0],
        total: 1,
        library: facts.library(),
        secrets: &BTreeMap::new(),
        events: &log,
        clock: &TestClock::at(SystemTime::UNIX_EPOCH),
        cancel: &CancellationToken::new(),
        work: directory.path(),
    })
    .await;
    let error = result.unwrap_err();
    assert!(error.fault.to_string().contains("the input `motd` changed since the plan was made"), "{}", error.fault);
    assert!(guest.scripts().is_empty());
}

#[test]
fn every_built_in_provisioner_can_be_planned_for() {
    let facts = HostFacts::with_library(Library::built_in());
    for name in facts.provisioner_names() {
        facts.provisioner(&name).unwrap();
    }
}

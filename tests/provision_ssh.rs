//! Steps and checks over a real connection. The server is on this very machine, so they touch only a directory of their own.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{fs, path::Path, sync::Mutex, time::Duration};

use kiln_build::check::{CheckError, CheckRun, run_checks};
use kiln_core::{
    event::{CheckedOn, Event, Events},
    facts::{GivenValue, Inputs, TemplateText, VariableValue},
    plan::Plan,
    template,
};
use kiln_io::{guest::Guest, time::SystemClock};
use kiln_provision::{HostFacts, Library, StepRun, error::StepError, run_step};
use kiln_tests::{
    guest::{connect, connect_through, eventually},
    proxy::Proxy,
    sshd::Sshd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

/// The steps of all tests share `/run/kiln` of this machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[derive(Debug, Default)]
struct Log(Mutex<String>);

impl Events for Log {
    fn emit(&self, event: Event) {
        let text = match event {
            Event::Output { text, .. } => text,
            other => format!("{other:?}\n"),
        };
        self.0.lock().unwrap().push_str(&text);
    }
}

impl Log {
    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// The plan of a template whose steps and checks are `body`; `{{ dir }}` is `directory`, `{{ token }}` a secret.
fn plan(directory: &Path, body: &str) -> (Plan, HostFacts) {
    let facts = HostFacts::with_library(Library::built_in());
    let text = format!(
        "[image]\nname = \"test\"\n[base.debian]\nsuite = \"bookworm\"\n[variables.dir]\ntype = \"string\"\n\
         [variables.token]\ntype = \"string\"\nsensitive = true\n{body}"
    );
    let entry = TemplateText { name: directory.join("template.toml").display().to_string(), text };
    let variable = |name: &str, value: &str| VariableValue {
        name: name.to_owned(),
        value: GivenValue::Text(value.to_owned()),
        origin: "test".to_owned(),
    };
    let inputs = Inputs {
        variables: vec![variable("dir", &directory.display().to_string()), variable("token", "s3cr3t-canary")],
    };
    let plans = template::load(&entry, &facts).and_then(|template| template.plans(&inputs, &facts));
    (plans.unwrap_or_else(|mistakes| panic!("{}", mistakes.render())).remove(0), facts)
}

async fn run_all(guest: &dyn Guest, plan: &Plan, facts: &HostFacts, work: &Path, log: &Log) -> Result<(), StepError> {
    for step in &plan.steps {
        run_step(StepRun {
            guest,
            step,
            total: plan.steps.len(),
            library: facts.library(),
            secrets: &plan.secrets,
            events: log,
            clock: &SystemClock::new(),
            cancel: &CancellationToken::new(),
            work,
        })
        .await?;
    }
    Ok(())
}

async fn check(guest: &dyn Guest, plan: &Plan, log: &Log) -> Result<usize, CheckError> {
    let clock = SystemClock::new();
    let cancel = CancellationToken::new();
    let run = CheckRun { guest, on: CheckedOn::Guest, events: log, clock: &clock, cancel: &cancel };
    run_checks(run, &plan.checks).await.map(|records| records.len())
}

#[tokio::test]
async fn steps_leave_what_they_made_and_nothing_of_themselves() {
    let _turn = TURN.lock().await;
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("tree")).unwrap();
    for index in 0..500 {
        fs::write(directory.path().join(format!("tree/{index}")), vec![b'x'; 1024]).unwrap();
    }
    fs::write(directory.path().join("large"), vec![0xa5; 3 << 20]).unwrap();
    let (plan, facts) = plan(
        directory.path(),
        r#"
[[provision]]
use = "files"
files = [
    { path = "{{ dir }}/out/tree", source = "tree" },
    { path = "{{ dir }}/out/large", source = "large", mode = "0600" },
    { path = "{{ dir }}/out/text", content = "it's {{ dir }}" },
]
[[provision]]
use = "shell"
script = 'printf %s "$TOKEN" | sha256sum >"$1/out/token"; echo "token: $TOKEN"; echo "$0" >"$1/out/script"; pwd'
args = ["{{ dir }}"]
secrets = { TOKEN = "{{ token }}" }
"#,
    );
    let log = Log::default();
    run_all(&guest, &plan, &facts, directory.path(), &log)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", error.fault));
    let out = |name: &str| fs::read(directory.path().join("out").join(name)).unwrap();
    assert_eq!(fs::read_dir(directory.path().join("out/tree")).unwrap().count(), 500);
    assert_eq!(out("large"), vec![0xa5; 3 << 20]);
    assert_eq!(out("text"), format!("it's {}", directory.path().display()).into_bytes());
    assert_eq!(out("token").len(), 68);
    assert!(log.text().contains("token: ***") && !log.text().contains("s3cr3t-canary"), "{}", log.text());
    let script = String::from_utf8(out("script")).unwrap();
    assert!(script.starts_with("/run/kiln/step-2/"), "{script}");
    // The guest removes the directory while it already takes the next command.
    eventually("the step's directory is gone", || !Path::new("/run/kiln/step-2").exists()).await;
}

#[tokio::test]
async fn a_step_that_leaves_a_process_behind_ends_and_one_that_hangs_is_killed() {
    let _turn = TURN.lock().await;
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = tempfile::tempdir().unwrap();
    let (plan, facts) = plan(
        directory.path(),
        r#"
[[provision]]
use = "shell"
script = 'sleep 30 & echo started'
[[provision]]
use = "shell"
as = "hangs"
script = 'echo "Continue? [y/N]"; read -r answer || echo "no answer"; sleep 1000'
timeout = "2s"
"#,
    );
    let log = Log::default();
    let error = run_all(&guest, &plan, &facts, directory.path(), &log).await.unwrap_err();
    assert_eq!(error.number, 2, "{error}: {}", error.fault);
    let text = error.fault.to_string();
    assert!(text.contains("timed out after 2s") && text.contains("sleep 1000") && text.contains("no answer"), "{text}");
}

#[tokio::test]
async fn fifty_steps_over_40_ms_take_a_round_trip_each() {
    let _turn = TURN.lock().await;
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, Duration::from_millis(20));
    let guest = connect_through(&sshd, proxy.port).await;
    let directory = tempfile::tempdir().unwrap();
    let step = |n| format!("[[provision]]\nuse = \"shell\"\nas = \"s{n}\"\nscript = \"true\"\n");
    let (plan, facts) = plan(directory.path(), &(0..50).map(step).collect::<Vec<_>>().concat());
    let before = proxy.turns();
    run_all(&guest, &plan, &facts, directory.path(), &Log::default()).await.unwrap();
    let trips = proxy.turns() - before;
    assert!((50..=60).contains(&trips), "{trips} round trips");
}

#[tokio::test]
async fn ansible_runs_a_real_playbook_over_the_pinned_connection() {
    let _turn = TURN.lock().await;
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = tempfile::tempdir().unwrap();
    let book = directory.path().join("play");
    fs::create_dir_all(book.join("roles/greet/templates")).unwrap();
    fs::create_dir_all(book.join("roles/greet/tasks")).unwrap();
    fs::create_dir_all(book.join("group_vars")).unwrap();
    fs::write(book.join("group_vars/web.yml"), "punctuation: '!'\n").unwrap();
    fs::write(book.join("playbook.yml"), "- hosts: web\n  gather_facts: false\n  roles: [greet]\n").unwrap();
    fs::write(book.join("roles/greet/templates/g.j2"), "{{ greeting }}{{ punctuation }}").unwrap();
    fs::write(
        book.join("roles/greet/tasks/main.yml"),
        "- ansible.builtin.template:\n    src: g.j2\n    dest: \"{{ target }}\"\n    mode: '0640'\n\
         - ansible.builtin.shell: \"echo seen {{ lookup('env', 'TOKEN') | length }}\"\n  register: seen\n\
         - ansible.builtin.debug:\n    msg: \"{{ seen.stdout }} {{ lookup('env', 'TOKEN') }}\"\n",
    )
    .unwrap();
    let body = r#"
[[provision]]
use = "ansible"
playbook = "play"
groups = ["web"]
extra_vars = { greeting = "it's {you}", target = "{{ dir }}/greeting" }
secrets = { TOKEN = "{{ token }}" }
"#;
    let (plan, facts) = plan(directory.path(), body);
    let log = Log::default();
    let work = directory.path().join("work");
    run_all(&guest, &plan, &facts, &work, &log)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", error.fault, log.text()));
    assert_eq!(fs::read_to_string(directory.path().join("greeting")).unwrap(), "it's {you}!");
    assert!(log.text().contains("seen 13 ***") && !log.text().contains("s3cr3t-canary"), "{}", log.text());
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    assert!(!Path::new("/var/tmp/kiln-ansible").exists());
}

#[tokio::test]
async fn ansible_refuses_a_guest_with_another_host_key() {
    let _turn = TURN.lock().await;
    let sshd = Sshd::start().await;
    let other = Sshd::start().await;
    let guest = connect(&sshd).await;
    let line = other.host_key.known_hosts("127.0.0.1", sshd.port);
    fs::write(guest.access().unwrap().known_hosts, line).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("p.yml"),
        "- hosts: all\n  gather_facts: false\n  tasks:\n  - ansible.builtin.ping:\n",
    )
    .unwrap();
    let (plan, facts) = plan(directory.path(), "[[provision]]\nuse = \"ansible\"\nplaybook = \"p.yml\"\n");
    let log = Log::default();
    let error = run_all(&guest, &plan, &facts, &directory.path().join("work"), &log).await.unwrap_err();
    assert!(log.text().contains("Host key verification failed"), "{}: {}", error.fault, log.text());
}

/// A web server that answers in chunks, until the test ends.
async fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    port
}

#[tokio::test]
async fn checks_ask_a_real_machine() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "two\nlines\n").unwrap();
    let port = web().await;
    let body = |wrong: &str| {
        format!(
            r#"
[[check]]
use = "command"
run = "echo out; echo err >&2; exit 3"
exit = 3
contains = "err"
[[check]]
use = "http"
url = "http://127.0.0.1:{port}/"
contains = "hello world"
[[check]]
use = "port"
port = {port}
[[check]]
use = "port"
port = 1
open = false
[[check]]
use = "file"
path = "{{{{ dir }}}}/file"
mode = "0644"
contains = "two\nlines"
sha256 = "{}"
[[check]]
use = "file"
path = "{{{{ dir }}}}/nothing"
exists = false
[[check]]
use = "user"
name = "root"
home = "/root"
groups = ["root"]
[[check]]
use = "package"
name = "coreutils"
[[check]]
use = "package"
name = "no-such-package"
installed = false
{wrong}"#,
            kiln_core::Digest::of(b"two\nlines\n").hex()
        )
    };
    let log = Log::default();
    let (good, _) = plan(directory.path(), &body(""));
    assert_eq!(check(&guest, &good, &log).await.unwrap_or_else(|error| panic!("{error}")), 9);
    let wrong = r#"
[[check]]
use = "file"
path = "{{ dir }}/file"
as = "wrong file"
contains = "three"
within = "0s"
[[check]]
use = "service"
name = "no-such-service"
within = "0s"
[[check]]
use = "port"
port = 1
as = "closed port"
within = "0s"
"#;
    let (bad, _) = plan(directory.path(), &body(wrong));
    let error = check(&guest, &bad, &log).await.unwrap_err().to_string();
    assert!(error.starts_with("3 of 12 checks failed on the guest:"), "{error}");
    for part in
        ["wrong file: ", "does not contain `three`", "must be running", "closed port: port 1 at 127.0.0.1 must be open"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_check_may_fail_until_its_time_is_up() {
    let sshd = Sshd::start().await;
    let guest = connect(&sshd).await;
    let directory = tempfile::tempdir().unwrap();
    let body = "[[check]]\nuse = \"file\"\npath = \"{{ dir }}/late\"\nwithin = \"10 min\"\n";
    let (plan, _) = plan(directory.path(), body);
    let log = Log::default();
    let path = directory.path().join("late");
    // The first question finds nothing; the file appears once the check is known to be waiting.
    let (checked, ()) = tokio::join!(check(&guest, &plan, &log), async {
        tokio::task::yield_now().await;
        kiln_io::time::Clock::sleep(&SystemClock::new(), Duration::from_millis(700)).await;
        fs::write(path, "").unwrap();
    });
    assert_eq!(checked.unwrap(), 1);
}

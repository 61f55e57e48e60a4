//! A whole `kiln build` on EC2: the real binary, the fake's EC2, and a real guest over real SSH.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use kiln_aws_tests::{BaseImage, Fake, Fault, Living, Schedule, documented};
use kiln_io::{
    dirs::Dirs,
    ledger::{self, Condition},
    time::done_within,
};
use kiln_tests::home::{Home, repository};

use crate::{bench, guest::Guest};

const REGION: &str = "us-east-1";
const DEBIAN: &str = "136693071363";

/// A user's home with a template, and an account with a Debian to start from.
struct Scene {
    home: Home,
    fake: Arc<Fake>,
    guest: Arc<Guest>,
}

impl Scene {
    fn new(name: &str, script: &str) -> Self {
        Self::with(name, script, "")
    }

    /// With `more` at the end of the template.
    fn with(name: &str, script: &str, more: &str) -> Self {
        let home = Home::apart(name);
        let fake = Arc::new(Fake::start());
        fake.allow(documented());
        let guest = Guest::of(&fake);
        let disk = fs::read(guest.image()).unwrap();
        let base =
            BaseImage { region: REGION, owner: DEBIAN, name: "debian-12-1", architecture: "x86_64", disk: &disk };
        fake.base_image(base);
        let template = format!(
            r##"[image]
name = "web"
version = "1.0.0"

[base.ami]
name = "debian-12-*"
owner = "{DEBIAN}"

[builder.ec2]
region = "{REGION}"
instance_types = ["m6i.large", "t3.micro"]
zones = ["us-east-1a", "us-east-1b"]
address = "private"
ssh_port = {port}
user_data = "#cloud-config\ntimezone: UTC"

[[provision]]
use = "shell"
script = "{script}"

[[check]]
use = "file"
path = "/srv/page"
contains = "baked"
{more}"##,
            port = guest.port
        );
        fs::create_dir_all(home.path("web")).unwrap();
        fs::write(home.path("web/template.toml"), template).unwrap();
        Self { home, fake, guest }
    }

    fn command(&self, verb: &str, more: &[&str]) -> Command {
        let template = self.home.path("web").display().to_string();
        self.in_account(&[&[verb, &template], more].concat())
    }

    fn in_account(&self, arguments: &[&str]) -> Command {
        in_account(&self.home, &self.fake, arguments)
    }

    fn run(&self, verb: &str, more: &[&str]) -> (String, Output) {
        let output = self.command(verb, more).output().unwrap();
        (format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)), output)
    }

    fn dirs(&self) -> Dirs {
        let directory = |name| self.home.path(name);
        Dirs { cache: directory("cache"), state: directory("state"), data: directory("data") }
    }

    /// What there is in the account beside the base.
    fn ours(&self) -> Vec<Living> {
        self.fake.living().into_iter().filter(|living| living.account == Fake::ACCOUNT).collect()
    }
}

/// A kiln with the feature `aws`. Other tests build the one without, in the same place: a copy stays.
fn with_aws() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--workspace", "--features", "kiln/aws", "--bin", "kiln"]);
        assert!(cargo.current_dir(repository()).status().unwrap().success(), "kiln does not build");
        // Tests run from `target/<profile>/deps`.
        let program = std::env::current_exe().unwrap();
        let profile = program.ancestors().nth(2).unwrap();
        let (part, to) = (profile.join(format!("kiln-aws.{}", std::process::id())), profile.join("kiln-aws"));
        fs::copy(profile.join("kiln"), &part).unwrap();
        fs::rename(&part, &to).unwrap();
        to
    })
}

#[test]
fn a_bake_on_ec2_ends_in_a_version_and_an_ami_of_what_the_guest_wrote_and_leaves_nothing_else() {
    let scene = Scene::new("ec2", "echo baked by kiln > /srv/page");
    let (plan, planned) = scene.run("plan", &[]);
    assert!(planned.status.success() && plan.contains("base ami name debian-12-* of 136693071363"), "{plan}");
    let locked = fs::read_to_string(scene.home.path("web/kiln.lock")).unwrap();
    assert!(locked.contains("debian-12-1"), "{locked}");
    // A newer one changes nothing until somebody asks.
    scene.fake.advance(Duration::from_secs(5));
    let newer = BaseImage { region: REGION, owner: DEBIAN, name: "debian-12-2", architecture: "x86_64", disk: b"" };
    scene.fake.base_image(newer);
    scene.fake.capacity("m6i.large", "us-east-1a", 0);

    let (said, built) = scene.run("build", &[]);
    assert!(built.status.success(), "{said}\n{}", scene.guest_log());
    let kinds: Vec<_> = scene.ours().iter().map(|living| living.kind).collect();
    assert_eq!(kinds, ["image", "snapshot"], "{said}");
    assert!(said.contains("m6i.large, on demand) in us-east-1b"), "{said}");
    let told = String::from_utf8(scene.guest.launches.lock().unwrap()[0].user_data.clone()).unwrap();
    assert!(told.contains("timezone: UTC") && told.contains("--unit=kiln-dead-man, --on-active=7200"), "{told}");

    // The sealed disk was tried: an instance of an AMI that is gone, told nothing but keys. The AMI of the version stands on what was sent
    // for that one.
    let launches = scene.guest.launches.lock().unwrap().clone();
    let told = String::from_utf8(launches[1].user_data.clone()).unwrap();
    assert!(!told.contains("timezone: UTC") && told.contains("--unit=kiln-dead-man"), "{told}");
    let tried = &launches[1].image;
    assert!(launches.len() == 2 && *tried != launches[0].image, "{launches:?}");
    assert!(scene.fake.living().iter().all(|living| living.id != *tried));
    assert!(said.contains("it boots, 1 checks passed"), "{said}");
    assert!(said.contains("0 blocks of 512 KiB to send, on top of what was tried"), "{said}");
    let calls = scene.fake.ledger();
    let put = calls.iter().filter(|call| call.action == "PutSnapshotBlock").count();
    let completed = calls.iter().filter(|call| call.action == "CompleteSnapshot").count();
    assert!(put > 0 && completed == 2, "{put} blocks in {completed} snapshots");

    let ami = &scene.ours()[0];
    assert_eq!((ami.tags["kiln:version"].as_str(), ami.tags["kiln:image"].as_str()), ("1.0.0", "web"));
    let snapshot = scene.fake.root_snapshot(REGION, Fake::ACCOUNT, &ami.id).unwrap();
    let blocks = (0..64).filter_map(|block| scene.fake.block(REGION, Fake::ACCOUNT, &snapshot, block));
    let disk: Vec<u8> = blocks.flatten().collect();
    assert!(disk.windows(13).any(|bytes| bytes == b"baked by kiln"));
    let shown = scene.plain(&["show", "web@1.0.0"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("ami://us-east-1/ami-") && shown.contains(&ami.id), "{shown}");
    let shown = scene.plain(&["show", "web@1.0.0", "--json"]).output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["amis"][0]["ami"], &shown["version"]), (&ami.id.as_str().into(), &"1.0.0".into()));
    assert!(
        shown["machine"]["cpus"].as_u64() > Some(0) && shown["machine"]["memory"].as_u64() > Some(1 << 20),
        "{shown}"
    );
    let on: Vec<_> = shown["checks"].as_array().unwrap().iter().map(|check| check["on"].as_str().unwrap()).collect();
    assert_eq!(on, ["guest", "artifact"]);
    let survey = ledger::survey(&scene.dirs()).unwrap();
    assert!(survey.iter().all(|report| report.found.is_empty()), "{survey:?}");

    // The same again costs no instance.
    let (launched, before) = (scene.guest.launches.lock().unwrap().len(), scene.ours());
    let (said, again) = scene.run("build", &[]);
    assert!(again.status.success() && said.contains("nothing it is made from has changed"), "{said}");
    assert_eq!((scene.guest.launches.lock().unwrap().len(), scene.ours()), (launched, before), "{said}");
    // An AMI that somebody deregistered is made of the version that is there.
    scene.fake.ec2(Fake::ACCOUNT, REGION, "DeregisterImage", &[("ImageId", &ami.id)]).unwrap();
    let (said, again) = scene.run("build", &[]);
    assert!(again.status.success() && said.contains("nothing it is made from has changed"), "{said}");
    let kinds: Vec<_> = scene.ours().iter().map(|living| living.kind).collect();
    assert_eq!(
        (scene.guest.launches.lock().unwrap().len(), &kinds[..]),
        (launched, &["image", "snapshot"][..]),
        "{said}"
    );
    let (plan, _) = scene.run("plan", &[]);
    assert!(plan.contains("will run: instances of EC2 leave no checkpoints"), "{plan}");
    assert!(plan.contains("baked from the same inputs"), "{plan}");
    let (plan, _) = scene.run("plan", &["--relock"]);
    assert!(fs::read_to_string(scene.home.path("web/kiln.lock")).unwrap().contains("debian-12-2"), "{plan}");
    assert!(!plan.contains("baked from the same inputs"), "another base gives another image: {plan}");
}

#[test]
fn amis_that_a_template_wants_are_made_when_they_may_be_and_shown_to_nobody_before() {
    const PARAMETER: &str = "/images/web/stable";
    let wanted =
        format!("[publish.ami]\nchannel = \"stable\"\nparameter = \"{PARAMETER}\"\n[publish.ami.regions.eu-west-1]\n");
    let scene = Scene::with("ec2-wanted", "echo baked by kiln > /srv/page", &wanted);
    // The first is the one that is tried.
    scene.fake.schedule(Schedule::new().during("RegisterImage", 2..=u64::MAX, Fault::AccessDenied));
    let (said, built) = scene.run("build", &[]);
    assert_eq!(built.status.code(), Some(3), "{said}\n{}", scene.guest_log());
    assert!(said.contains("0 of 2 regions have the AMI"), "{said}");
    let shown = |image: &str| scene.plain(&["show", image]).output().unwrap();
    assert!(shown("web@1.0.0").status.success(), "the image is published all the same");
    let parameter = || scene.fake.parameter(Fake::ACCOUNT, "eu-west-1", PARAMETER);
    assert!(!shown("web@stable").status.success() && parameter().is_none(), "{said}");
    let build = said.split_once("`kiln resume ").unwrap().1.split('`').next().unwrap();
    let report = fs::read_to_string(scene.dirs().build(build).join("publish.json")).unwrap();
    assert!(report.contains("eu-west-1") && report.contains("UnauthorizedOperation"), "{report}");

    let resume = || {
        let output = scene.in_account(&["resume", build]).output().unwrap();
        (format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)), output)
    };
    let (said, refused) = resume();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    scene.fake.schedule(Schedule::new());
    let (said, resumed) = resume();
    assert!(resumed.status.success(), "{said}");
    assert!(said.contains("web@stable is 1.0.0 now"), "{said}");
    let amis = || {
        let ours = scene.ours().into_iter().filter(|living| living.kind == "image");
        ours.map(|image| (image.region, image.id)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(amis().into_keys().collect::<Vec<_>>(), ["eu-west-1", REGION]);
    assert_eq!(parameter().as_ref(), amis().get("eu-west-1"));
    assert!(shown("web@stable").status.success());

    // Twice is as good as once.
    let before = scene.ours();
    let (said, again) = resume();
    assert!(again.status.success(), "{said}");
    assert_eq!(scene.ours(), before, "{said}");
    let survey = ledger::survey(&scene.dirs()).unwrap();
    assert!(survey.iter().all(|report| report.found.is_empty()), "{survey:?}");
}

#[test]
fn a_sealed_image_that_does_not_hold_what_the_guest_held_is_not_published() {
    // Only `/srv` of this guest is on its disk.
    let check = "[[check]]\nuse = \"file\"\npath = \"/opt/page\"\n";
    let scene = Scene::with("ec2-forgotten", "echo baked by kiln > /srv/page; touch /opt/page", check);
    let (said, built) = scene.run("build", &[]);
    assert_eq!(built.status.code(), Some(1), "{said}\n{}", scene.guest_log());
    assert!(said.contains("1 of 2 checks failed on the artifact"), "{said}");
    assert_eq!(scene.guest.launches.lock().unwrap().len(), 2, "{said}");
    assert!(!scene.plain(&["show", "web@1.0.0"]).output().unwrap().status.success(), "{said}");
    assert!(scene.ours().is_empty(), "{said}: {:?}", scene.ours());
    let survey = ledger::survey(&scene.dirs()).unwrap();
    assert!(survey.iter().all(|report| report.found.is_empty()), "{survey:?}");

    // Whoever says so has it unseen.
    let (said, built) = scene.run("build", &["--no-boot-test"]);
    assert!(built.status.success(), "{said}\n{}", scene.guest_log());
    assert_eq!(scene.guest.launches.lock().unwrap().len(), 3, "{said}");
    assert!(said.contains("blocks of 512 KiB to send, in full"), "{said}");
}

#[test]
fn a_bake_that_changes_no_file_gives_the_version_that_stands_for_it_an_ami() {
    let scene = Scene::new("ec2-same", "echo baked by kiln > /srv/page; touch -d @1000000000 /srv/page /srv");
    let template = scene.home.path("web/template.toml");
    let change = |from: &str, to: &str| {
        let text = fs::read_to_string(&template).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&template, text.replace(from, to)).unwrap();
    };
    change("version = \"1.0.0\"", "version = \"auto\"");
    let output = scene.home.path("out").display().to_string();
    let (said, built) = scene.run("build", &["--no-publish", "--output", &output]);
    assert!(built.status.success() && scene.ours().is_empty(), "{said}\n{}", scene.guest_log());
    let (said, built) = scene.run("build", &[]);
    assert!(built.status.success(), "{said}\n{}", scene.guest_log());
    let first = scene.ours();
    scene.fake.ec2(Fake::ACCOUNT, REGION, "DeregisterImage", &[("ImageId", &first[0].id)]).unwrap();
    change("touch -d", "true; touch -d");
    let (said, built) = scene.run("build", &[]);
    assert!(built.status.success(), "{said}\n{}", scene.guest_log());
    let version = &first[0].tags["kiln:version"];
    assert!(said.contains(&format!("every file is as in web {version}: nothing is published")), "{said}");
    let second = scene.ours();
    assert!(second.len() == 2 && second[0].id != first[0].id, "{said}: {second:?}");
    assert_eq!(&second[0].tags["kiln:version"], version);
}

#[test]
fn a_kiln_that_is_killed_while_the_sealed_image_is_tried_leaves_what_clean_takes_away() {
    let check = "[[check]]\nuse = \"command\"\nrun = \"touch /srv/tried; sleep 600\"\non = [\"artifact\"]\n";
    let scene = Scene::with("ec2-tried", "echo baked by kiln > /srv/page", check);
    let foreign = scene.fake.living();
    let mut kiln = scene.command("build", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let tried = || {
        let launches = scene.guest.launches.lock().unwrap();
        Ok::<_, ()>(launches.get(1).is_some_and(|launch| scene.guest.of_instance(&launch.instance, "tried").exists()))
    };
    assert_eq!(done_within(Duration::from_mins(3), tried), Ok(true), "{}", scene.guest_log());
    kiln.kill().unwrap();
    kiln.wait().unwrap();
    let mut kinds: Vec<_> = scene.ours().iter().map(|living| living.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["image", "instance", "key-pair", "security-group", "snapshot", "volume"]);
    let reports = || ledger::survey(&scene.dirs()).unwrap();
    let interrupted = || Ok::<_, ()>(reports().iter().any(|report| report.condition == Condition::Interrupted));
    assert_eq!(done_within(Duration::from_secs(30), interrupted), Ok(true), "{:?}", reports());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let access = || bench::access(&scene.fake);
    let released = runtime.block_on(kiln_aws::reconcile(&scene.dirs(), &reports(), access, &bench::open));
    assert!(released.failed.is_empty() && released.kept.is_empty(), "{released:?}");
    assert_eq!(scene.fake.living(), foreign);
}

#[test]
fn whoever_interrupts_a_trial_finds_nothing_left() {
    let check = "[[check]]\nuse = \"command\"\nrun = \"touch /srv/tried; sleep 600\"\non = [\"artifact\"]\n";
    let scene = Scene::with("ec2-interrupted", "echo baked by kiln > /srv/page", check);
    let foreign = scene.fake.living();
    let mut command = scene.command("build", &[]);
    let kiln = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let tried = || {
        let launches = scene.guest.launches.lock().unwrap();
        Ok::<_, ()>(launches.get(1).is_some_and(|launch| scene.guest.of_instance(&launch.instance, "tried").exists()))
    };
    assert_eq!(done_within(Duration::from_mins(3), tried), Ok(true), "{}", scene.guest_log());
    assert!(Command::new("kill").args(["-INT", &kiln.id().to_string()]).status().unwrap().success());
    let output = kiln.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("left: nothing"), "{said}");
    assert_eq!(scene.fake.living(), foreign, "{said}");
}

#[test]
fn a_kiln_that_is_killed_in_the_middle_of_a_step_leaves_what_clean_takes_away() {
    let scene = Scene::new("ec2-killed", "echo baked > /srv/page; sleep 600");
    let foreign = scene.fake.living();
    let mut kiln = scene.command("build", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let page = scene.guest.written("page");
    let reached = done_within(Duration::from_mins(2), || Ok::<_, ()>(page.exists()));
    assert_eq!(reached, Ok(true), "{}", scene.guest_log());
    kiln.kill().unwrap();
    kiln.wait().unwrap();
    let kinds: Vec<_> = scene.ours().iter().map(|living| living.kind).collect();
    assert_eq!(kinds, ["instance", "volume", "key-pair", "security-group"]);
    let reports = || ledger::survey(&scene.dirs()).unwrap();
    let interrupted = || Ok::<_, ()>(reports().iter().any(|report| report.condition == Condition::Interrupted));
    assert_eq!(done_within(Duration::from_secs(30), interrupted), Ok(true), "{:?}", reports());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let released =
        runtime.block_on(kiln_aws::reconcile(&scene.dirs(), &reports(), || bench::access(&scene.fake), &bench::open));
    assert!(released.failed.is_empty(), "{released:?}");
    // The volume goes with the instance.
    assert_eq!((released.gone.len(), released.kept.len()), (3, 0), "{released:?}");
    assert!(scene.ours().is_empty());
    assert_eq!(scene.fake.living(), foreign);
}

#[test]
fn a_bake_goes_through_a_proxy_and_nobody_is_let_in_for_it() {
    let scene = Scene::new("ec2-proxied", "echo baked by kiln > /srv/page");
    let (template, log) = (scene.home.path("web/template.toml"), scene.home.path("proxied"));
    let text = fs::read_to_string(&template).unwrap();
    let proxy = format!("proxy_command = \"echo %i >> '{}'; exec busybox nc %h %p\"\nssh_port", log.display());
    fs::write(&template, text.replacen("ssh_port", &proxy, 1)).unwrap();
    let (said, built) = scene.run("build", &[]);
    assert!(built.status.success(), "{said}\n{}", scene.guest_log());
    let through = fs::read_to_string(&log).unwrap();
    assert!(through.lines().count() > 0 && through.lines().all(|line| line.starts_with("i-")), "{through}");
    let ledger = scene.fake.ledger();
    assert!(ledger.iter().all(|call| call.action != "AuthorizeSecurityGroupIngress"));
    assert!(ledger.iter().any(|call| call.action == "CreateSecurityGroup"));
    let kinds: Vec<_> = scene.ours().iter().map(|living| living.kind).collect();
    assert_eq!(kinds, ["image", "snapshot"], "{said}");
}

#[test]
fn an_instance_that_is_taken_back_in_the_middle_of_a_step_ends_the_bake_with_the_reason() {
    let scene = Scene::new("ec2-taken-back", "echo baked > /srv/page; sleep 600");
    let kiln = scene.command("build", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let page = scene.guest.written("page");
    assert_eq!(done_within(Duration::from_mins(2), || Ok::<_, ()>(page.exists())), Ok(true), "{}", scene.guest_log());
    let instance = scene.ours().into_iter().find(|living| living.kind == "instance").unwrap().id;
    scene.fake.reclaim(Fake::ACCOUNT, REGION, &instance);
    let output = kiln.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&instance) && said.contains("Server.SpotInstanceTermination"), "{said}");
    assert!(scene.ours().is_empty(), "{said}");
    let survey = ledger::survey(&scene.dirs()).unwrap();
    assert!(survey.iter().all(|report| report.found.is_empty()), "{survey:?}");
}

impl Scene {
    fn guest_log(&self) -> String {
        use kiln_aws_tests::Machines as _;
        self.guest.console("")
    }

    fn plain(&self, arguments: &[&str]) -> Command {
        plain(&self.home, arguments)
    }
}

/// A kiln with the feature `aws` in this home, with nothing of the caller's environment but `PATH`.
fn plain(home: &Home, arguments: &[&str]) -> Command {
    let mut command = Command::new(with_aws());
    command.args(arguments).env_clear().current_dir(repository()).stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home.path(""));
    for (name, directory) in [("CACHE", "cache"), ("STATE", "state"), ("DATA", "data")] {
        command.env(format!("KILN_{name}_DIR"), home.path(directory));
    }
    command
}

/// The same with credentials of the fake's account.
pub(crate) fn in_account(home: &Home, fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = plain(home, arguments);
    command.env("AWS_ENDPOINT_URL", fake.endpoint()).env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

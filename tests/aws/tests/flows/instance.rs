//! The instance of a bake: where it finds room, what goes wrong on the way, and that nothing of it stays.

use std::{fs::File, io::Read as _, time::Duration};

use kiln_aws::{Account, AwsError, Instance, Wanted};
use kiln_aws_tests::{BLOCK, BaseImage, Fake, Fault, Living, Pace, Schedule};
use kiln_core::{
    ImageName,
    plan::{AmiWish, Ec2Machine},
};
use kiln_io::{keys::KeyPair, ledger::Ledger, random::nonce};

use crate::bench::{self, Bench};

const REGION: &str = "us-east-1";
const DEBIAN: &str = "136693071363";

fn base(fake: &Fake, owner: &str, name: &str) -> String {
    // Creation dates have whole seconds.
    fake.advance(Duration::from_secs(2));
    fake.base_image(BaseImage { region: REGION, owner, name, architecture: "x86_64", disk: b"the disk of the base" })
}

async fn start(bench: &Bench, machine: &Ec2Machine, ami: &str) -> Result<Instance, AwsError> {
    let account = Account::open(bench::access(&bench.fake), REGION).await?;
    let build = format!("b-{}", nonce());
    // The kiln that owns the build.
    Ledger::open(&bench.dirs, &build)?;
    let (login, host) = (KeyPair::generate("kiln").unwrap(), KeyPair::generate("").unwrap());
    let image: ImageName = "web".parse().unwrap();
    let wanted = Wanted { machine, ami, image: &image, build: &build, login: &login.public, host: &host };
    Instance::start(&account, &bench.dirs, wanted).await
}

/// A whole life: the start of its disk.
async fn bake(bench: &Bench, machine: &Ec2Machine, ami: &str) -> Result<Vec<u8>, AwsError> {
    let instance = start(bench, machine, ami).await?;
    let path = bench.dirs.state.join(nonce());
    let disk = async {
        instance.let_go().await?;
        for living in ours(&bench.fake).iter().filter(|living| living.kind == "instance") {
            bench.fake.power_off(Fake::ACCOUNT, REGION, &living.id);
        }
        instance.disk(&path, &|_, _| {}).await
    }
    .await;
    instance.release().await?;
    assert_eq!(disk?, 1 << 30);
    let mut start = vec![0; BLOCK];
    File::open(&path).unwrap().read_exact(&mut start).unwrap();
    Ok(start)
}

/// What stands in the account and carries a mark of ours.
fn ours(fake: &Fake) -> Vec<Living> {
    fake.living().into_iter().filter(|living| living.tags.contains_key("kiln:build")).collect()
}

fn instances_made(fake: &Fake) -> usize {
    fake.ledger().iter().flat_map(|entry| &entry.created).filter(|id| id.starts_with("i-")).count()
}

#[tokio::test]
async fn it_is_closed_to_all_but_the_caller_encrypted_marked_and_gone_in_the_end() {
    let bench = Bench::new("instance");
    let ami = base(&bench.fake, DEBIAN, "debian-12");
    let before = bench.fake.living();
    let instance = start(&bench, &bench::machine(REGION), &ami).await.unwrap();
    let described = |action: &str| bench.fake.ec2(Fake::ACCOUNT, REGION, action, &[]).unwrap();
    let groups = described("DescribeSecurityGroups");
    assert!(groups.contains("<cidrIp>198.51.100.7/32</cidrIp>") && groups.contains("<fromPort>22</fromPort>"));
    assert_eq!(groups.matches("<cidrIp>").count(), groups.matches("198.51.100.7/32").count(), "{groups}");
    let volumes = described("DescribeVolumes");
    assert!(volumes.contains("<encrypted>true</encrypted>") && volumes.contains("<volumeType>gp3</volumeType>"));
    let running = described("DescribeInstances");
    assert!(running.contains("<httpTokens>required</httpTokens>"), "{running}");
    let kinds = |living: &[Living]| living.iter().map(|living| living.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&ours(&bench.fake)), ["instance", "volume", "key-pair", "security-group"]);
    assert!(ours(&bench.fake).iter().all(|living| living.tags.contains_key("kiln:intent")));
    assert!(ours(&bench.fake).iter().all(|living| living.tags["team"] == "images"));
    instance.release().await.unwrap();
    assert_eq!((bench.fake.living(), bench.outstanding()), (before, 0));
}

#[tokio::test]
async fn its_disk_comes_here_and_a_machine_that_stays_up_is_not_read() {
    let bench = Bench::new("disk");
    let ami = base(&bench.fake, DEBIAN, "debian-12");
    let before = bench.fake.living();
    let disk = bake(&bench, &bench::machine(REGION), &ami).await.unwrap();
    assert!(disk.starts_with(b"the disk of the base"));
    assert!(disk[20..].iter().all(|byte| *byte == 0));
    let stubborn = Ec2Machine { shutdown_timeout: Duration::from_millis(50), ..bench::machine(REGION) };
    let instance = start(&bench, &stubborn, &ami).await.unwrap();
    instance.let_go().await.unwrap();
    let error = instance.disk(&bench.dirs.state.join("disk"), &|_, _| {}).await.unwrap_err();
    assert!(matches!(error, AwsError::StaysUp { .. }), "{error}");
    instance.release().await.unwrap();
    assert_eq!((bench.fake.living(), bench.outstanding()), (before, 0));
}

#[tokio::test]
async fn types_zones_and_markets_are_tried_in_order_until_one_has_room() {
    let bench = Bench::new("capacity");
    let ami = base(&bench.fake, DEBIAN, "debian-12");
    for (full, spot, expected) in [
        (&[][..], false, "m6i.large, on demand) in us-east-1b"),
        (&[("m6i.large", "us-east-1b")][..], false, "m6i.large, on demand) in us-east-1a"),
        (&[("m6i.large", "us-east-1a")][..], false, "t3.micro, on demand) in us-east-1b"),
        (&[][..], true, "t3.micro, spot) in us-east-1b"),
    ] {
        for (instance_type, zone) in full {
            bench.fake.capacity(instance_type, zone, 0);
        }
        let instance = start(&bench, &Ec2Machine { spot, ..bench::machine(REGION) }, &ami).await.unwrap();
        assert!(instance.description().ends_with(expected), "{} {expected}", instance.description());
        instance.release().await.unwrap();
    }
    // No spot instance anywhere: two types in two zones are refused, then one is taken on demand.
    bench.fake.schedule(Schedule::new().during("RunInstances", 1..=4, Fault::NoCapacity));
    let instance = start(&bench, &Ec2Machine { spot: true, ..bench::machine(REGION) }, &ami).await.unwrap();
    assert!(instance.description().contains("on demand"), "{}", instance.description());
    instance.release().await.unwrap();
    bench.fake.schedule(Schedule::new().during("RunInstances", 1..=u64::MAX, Fault::NoCapacity));
    let error = start(&bench, &bench::machine(REGION), &ami).await.unwrap_err();
    assert!(matches!(&error, AwsError::NoCapacity { zones, .. } if zones == "us-east-1b, us-east-1a"), "{error}");
    assert_eq!((ours(&bench.fake), bench.outstanding()), (Vec::new(), 0));
}

#[tokio::test]
async fn an_instance_that_ec2_takes_back_is_noticed() {
    let bench = Bench::new("reclaimed");
    let ami = base(&bench.fake, DEBIAN, "debian-12");
    let instance = start(&bench, &Ec2Machine { spot: true, ..bench::machine(REGION) }, &ami).await.unwrap();
    let id = ours(&bench.fake).into_iter().find(|living| living.kind == "instance").unwrap().id;
    bench.fake.reclaim(Fake::ACCOUNT, REGION, &id);
    let error = instance.watch().await;
    assert!(matches!(&error, AwsError::Instance { instance, .. } if *instance == id), "{error}");
    instance.release().await.unwrap();
    assert_eq!((ours(&bench.fake), bench.outstanding()), (Vec::new(), 0));
}

#[tokio::test]
async fn a_lost_reply_at_any_call_makes_nothing_twice_and_leaves_nothing() {
    let calls = {
        let bench = Bench::new("count");
        let ami = base(&bench.fake, DEBIAN, "debian-12");
        bake(&bench, &bench::machine(REGION), &ami).await.unwrap();
        bench.fake.ledger().len() as u64
    };
    for call in 1..=calls {
        let bench = Bench::new("lost");
        let ami = base(&bench.fake, DEBIAN, "debian-12");
        let before = bench.fake.living();
        bench.fake.schedule(Schedule::new().at_call(call, Fault::LoseReply));
        let disk =
            bake(&bench, &bench::machine(REGION), &ami).await.unwrap_or_else(|error| panic!("call {call}: {error}"));
        assert!(disk.starts_with(b"the disk of the base"), "call {call}");
        assert_eq!(instances_made(&bench.fake), 1, "call {call}");
        assert_eq!((bench.fake.living(), bench.outstanding()), (before, 0), "call {call}");
    }
}

#[tokio::test]
async fn whatever_stops_it_one_clean_takes_away_what_is_ours_and_nothing_else() {
    let mut call = 2;
    loop {
        let bench = Bench::new("stopped");
        let ami = base(&bench.fake, DEBIAN, "debian-12");
        bench.plant();
        let foreign = bench.fake.living();
        // Nothing can be undone either: as if kiln had been killed there.
        bench.fake.schedule(Schedule::new().during_calls(call..=u64::MAX, Fault::ExpiredToken));
        let outcome = bake(&bench, &bench::machine(REGION), &ami).await;
        bench.fake.schedule(Schedule::new());
        bench.die();
        bench.clean().await;
        assert_eq!((bench.fake.living(), bench.outstanding()), (foreign, 0), "call {call}");
        match outcome {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, AwsError::Expired { .. }), "call {call}: {error}"),
        }
        call += 1;
    }
    assert!(call > 15, "{call}");
}

#[tokio::test]
async fn a_slow_and_forgetful_account_is_waited_for() {
    let bench = Bench::new("forgetful");
    let ami = base(&bench.fake, DEBIAN, "debian-12");
    let before = bench.fake.living();
    bench.fake.pace(Pace { hidden: 3, flapping: true, pending: 4, page: 2 });
    bake(&bench, &bench::machine(REGION), &ami).await.unwrap();
    assert_eq!((bench.fake.living(), bench.outstanding()), (before, 0));
}

#[tokio::test]
async fn what_is_refused_at_any_call_leaves_nothing_that_could_only_not_be_seen_yet() {
    let mut call = 2;
    loop {
        let bench = Bench::new("refused");
        let ami = base(&bench.fake, DEBIAN, "debian-12");
        let foreign = bench.fake.living();
        bench.fake.pace(Pace { hidden: 3, flapping: true, pending: 1, page: 0 });
        bench.fake.schedule(Schedule::new().at_call(call, Fault::AccessDenied));
        let outcome = bake(&bench, &bench::machine(REGION), &ami).await;
        // What could not be taken away stands in the ledger.
        bench.fake.schedule(Schedule::new());
        bench.die();
        bench.clean().await;
        assert_eq!((bench.fake.living(), bench.outstanding()), (foreign, 0), "call {call}: {outcome:?}");
        if outcome.is_ok() {
            break;
        }
        call += 1;
    }
    assert!(call > 15, "{call}");
}

#[tokio::test]
async fn a_base_by_its_name_is_the_newest_of_its_owner_whoever_else_has_one() {
    let bench = Bench::new("owner");
    let account = Account::open(bench::access(&bench.fake), REGION).await.unwrap();
    base(&bench.fake, DEBIAN, "debian-12-20261001");
    let newest = base(&bench.fake, DEBIAN, "debian-12-20261101");
    let stranger = base(&bench.fake, "999999999999", "debian-12-20261115");
    let name = AmiWish::Name { pattern: "debian-12-*".to_owned(), owner: DEBIAN.to_owned() };
    let found = account.find_ami(REGION, &name).await.unwrap();
    assert_eq!((found.ami, found.owner.as_deref()), (newest, Some(DEBIAN)));
    let path = "/aws/service/debian/release/12/latest/amd64";
    bench.fake.public_parameter(Fake::ACCOUNT, REGION, path, &stranger);
    let parameter = |owner: Option<&str>| AmiWish::Parameter { path: path.to_owned(), owner: owner.map(str::to_owned) };
    assert_eq!(account.find_ami(REGION, &parameter(None)).await.unwrap().ami, stranger);
    let error = account.find_ami(REGION, &parameter(Some(DEBIAN))).await.unwrap_err();
    assert!(matches!(error, AwsError::OtherOwner { .. }), "{error}");
    let nobody = AmiWish::Name { pattern: "debian-13-*".to_owned(), owner: DEBIAN.to_owned() };
    let error = account.find_ami(REGION, &nobody).await.unwrap_err();
    assert!(matches!(error, AwsError::NoAmi { .. }), "{error}");
}

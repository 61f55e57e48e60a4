//! Whatever goes wrong on the way: the AMI is right in the end, or everything can be taken away.

use std::time::Duration;

use kiln_aws::{AwsError, Place, Sharing};
use kiln_aws_tests::{Fault, Pace, Refusal, Schedule};

use crate::bench::{self, Bench, REGIONS};

#[tokio::test]
async fn one_fault_at_any_call_of_the_flow_changes_nothing_in_the_end() {
    let calls = {
        let bench = Bench::new("count");
        bench.publish("1.0.0", &bench::disk(1, 3));
        bench.ami("1.0.0").await.unwrap();
        bench.fake.ledger().len() as u64
    };
    for fault in [Fault::LoseReply, Fault::InternalAfter, Fault::Throttle] {
        for call in 1..=calls {
            let bench = Bench::new("fault");
            let disk = bench.publish("1.0.0", &bench::disk(1, 3));
            bench.fake.schedule(Schedule::new().at_call(call, fault.clone()));
            let published =
                bench.ami("1.0.0").await.unwrap_or_else(|error| panic!("{fault:?} at call {call}: {error}"));
            bench.holds(&published, &disk);
            assert_eq!(bench.living(), (1, 1), "{fault:?} at call {call}");
            assert_eq!(bench.outstanding(), 0, "{fault:?} at call {call}");
        }
    }
}

#[tokio::test]
async fn credentials_that_expire_at_any_call_leave_what_clean_takes_away_or_the_next_run_goes_on_with() {
    let mut call = 2;
    loop {
        let bench = Bench::new("expired");
        let disk = bench.publish("1.0.0", &bench::disk(1, 3));
        bench.plant();
        let foreign = bench.fake.living();
        let schedule = Schedule::new().during_calls(call..=u64::MAX, Fault::ExpiredToken);
        bench.fake.schedule(schedule);
        let outcome = bench.ami("1.0.0").await;
        bench.fake.schedule(Schedule::new());
        bench.die();
        if call % 2 == 0 {
            bench.clean().await;
            let recorded = bench.registry.amis_of(&"web".parse().unwrap()).unwrap().len();
            let ours = bench.fake.living().len() - foreign.len();
            assert_eq!(ours, 2 * recorded, "call {call}");
        } else {
            let published = bench.ami("1.0.0").await.unwrap();
            bench.holds(&published, &disk);
            assert_eq!(bench.fake.living().len() - foreign.len(), 2, "call {call}");
            bench.die();
            bench.clean().await;
            bench.holds(&published, &disk);
        }
        assert!(foreign.iter().all(|living| bench.fake.living().contains(living)), "call {call}");
        match outcome {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, AwsError::Expired { .. }), "call {call}: {error}"),
        }
        call += 1;
    }
    assert!(call > 10);
}

#[tokio::test]
async fn an_interrupted_upload_goes_on_with_the_blocks_that_are_missing() {
    let bench = Bench::new("resume");
    let disk = bench.publish("1.0.0", &bench::disk(1, 28));
    bench.fake.schedule(Schedule::new().during("PutSnapshotBlock", 11..=u64::MAX, Fault::ExpiredToken));
    bench.ami("1.0.0").await.unwrap_err();
    bench.die();
    bench.fake.schedule(Schedule::new());
    let published = bench.ami("1.0.0").await.unwrap();
    assert_eq!(published.blocks, disk.len().div_ceil(bench::BLOCK) - 10);
    bench.holds(&published, &disk);
    assert_eq!(bench.living(), (1, 1));
}

/// A request may be made to wait for long, and what it makes is as new as its last attempt.
#[tokio::test]
async fn a_ledger_says_when_the_last_request_was_sent() {
    let bench = Bench::timeless("mark");
    bench.publish("1.0.0", &bench::disk(1, 3));
    let began = bench.now();
    bench.fake.schedule(Schedule::new().during("StartSnapshot", 1..=9, Fault::Throttle).at(
        "StartSnapshot",
        10,
        Fault::KillAfter,
    ));
    tokio::select! {
        _ = bench.ami("1.0.0") => panic!("it was killed"),
        () = bench.fake.killed() => {}
    }
    let killed = bench.now();
    assert!(killed.duration_since(began).unwrap() > Duration::from_secs(20), "throttling takes time");
    let written = bench.ledgers().remove(0).metadata().unwrap().modified().unwrap();
    assert_eq!(written, killed);
}

#[tokio::test]
async fn a_slow_and_forgetful_account_is_waited_for() {
    let bench = Bench::new("slow");
    bench.fake.pace(Pace { hidden: 3, flapping: true, pending: 4, page: 2 });
    let disk = bench.publish("1.0.0", &bench::disk(1, 8));
    let published = bench.ami("1.0.0").await.unwrap();
    bench.holds(&published, &disk);
    assert_eq!(bench.living(), (1, 1));
}

#[tokio::test]
async fn throttling_slows_the_upload_down_and_does_not_stop_it() {
    let bench = Bench::new("throttled");
    let disk = bench.publish("1.0.0", &bench::disk(1, 31));
    bench.fake.schedule(Schedule::new().random(5, 500, 60, &[Fault::Throttle]));
    let published = bench.ami("1.0.0").await.unwrap();
    bench.holds(&published, &disk);
}

#[tokio::test]
async fn a_snapshot_that_gets_stuck_is_given_up_kept_and_cleaned() {
    let bench = Bench::new("stuck");
    bench.publish("1.0.0", &bench::disk(1, 5));
    bench.fake.schedule(Schedule::new().at("StartSnapshot", 1, Fault::Stuck));
    let error = bench.ami("1.0.0").await.unwrap_err();
    assert!(matches!(error, AwsError::Stalled { .. }), "{error}");
    assert_eq!((bench.living(), bench.outstanding()), ((0, 1), 1));
    bench.die();
    bench.clean().await;
    assert_eq!((bench.living(), bench.outstanding()), ((0, 0), 0));
}

#[tokio::test]
async fn what_cannot_be_deleted_in_one_region_is_named_and_keeps_nothing_from_another() {
    let bench = Bench::new("denied");
    bench.publish("1.0.0", &bench::disk(1, 3));
    let places: Vec<_> = REGIONS.iter().map(|region| Place { region: (*region).to_owned(), kms_key: None }).collect();
    bench.fake.schedule(Schedule::new().during("RegisterImage", 1..=3, Fault::AccessDenied));
    assert_eq!(bench.report("1.0.0", &places, &Sharing::default()).await.complete(), 0);
    bench.die();
    bench.fake.schedule(Schedule::new().at("DeleteSnapshot", 1, Fault::AccessDenied));
    let error = bench.try_clean().await.unwrap_err();
    assert!(matches!(&error, AwsError::Refused { operation: "DeleteSnapshot", .. }), "{error}");
    assert_eq!((bench.living(), bench.outstanding()), ((0, 1), 1));
    bench.fake.schedule(Schedule::new());
    bench.clean().await;
    assert_eq!((bench.living(), bench.outstanding()), ((0, 0), 0));
}

#[tokio::test]
async fn a_quota_is_named_and_one_that_frees_itself_is_waited_for() {
    let bench = Bench::new("quota");
    let disk = bench.publish("1.0.0", &bench::disk(1, 3));
    let quota = |code: &str| Fault::Refuse(Refusal::new(400, code, "You have reached the limit of this account."));
    bench.fake.schedule(Schedule::new().at("StartSnapshot", 1, quota("SnapshotLimitExceeded")));
    let error = bench.ami("1.0.0").await.unwrap_err();
    assert!(error.to_string().contains("SnapshotLimitExceeded"), "{error}");
    assert!(error.hint().unwrap().contains("quota"), "{:?}", error.hint());
    bench.die();
    bench.fake.schedule(Schedule::new().during("StartSnapshot", 1..=3, quota("PendingSnapshotLimitExceeded")));
    bench.holds(&bench.ami("1.0.0").await.unwrap(), &disk);
}

#[tokio::test]
async fn an_ami_that_failed_is_made_again_by_the_same_command() {
    let bench = Bench::new("failed");
    let disk = bench.publish("1.0.0", &bench::disk(1, 3));
    bench.fake.schedule(Schedule::new().at("RegisterImage", 1, Fault::Fails));
    let error = bench.ami("1.0.0").await.unwrap_err();
    assert!(matches!(error, AwsError::Image { .. }), "{error}");
    bench.die();
    bench.fake.schedule(Schedule::new());
    bench.holds(&bench.ami("1.0.0").await.unwrap(), &disk);
    assert_eq!((bench.living(), bench.outstanding()), ((1, 1), 0));
}

//! AMIs as bases and EC2 as the builder: what a template may say, and what it comes to.

use kiln_core::{
    facts::Inputs,
    plan::{Address, AmiBase, AmiWish, Base, Builder, Which},
};

use crate::shared::{World, resolve_in};

const BUILDER: &str = "[builder.ec2]\nregion = 'eu-west-1'\ninstance_types = ['m6i.large']\n";
const ID: &str = "[base.ami]\nid = 'ami-0123456789abcdef0'\n";

fn text(base: &str, builder: &str) -> String {
    format!("[image]\nname = 'web'\n{base}{builder}")
}

fn mistake(base: &str, builder: &str) -> String {
    let found = resolve_in(&World::default(), &text(base, builder), &Inputs::default()).expect_err("a mistake");
    found.iter().map(|found| found.message.clone()).collect::<Vec<_>>().join("; ")
}

#[test]
fn an_ami_by_its_name_needs_an_owner() {
    let by_name = |owner: &str| format!("[base.ami]\nname = 'debian-12-*'\n{owner}");
    assert!(mistake(&by_name(""), BUILDER).contains("needs its `owner`"));
    assert!(mistake(&by_name("owner = 'debian'\n"), BUILDER).contains("`debian` is no owner"));
    for owner in ["136693071363", "amazon", "self"] {
        let text = text(&by_name(&format!("owner = '{owner}'\n")), BUILDER);
        let plan = resolve_in(&World::default(), &text, &Inputs::default()).expect("a plan").remove(0);
        let Base::Ami(AmiBase { region, wanted, found: None }) = &plan.base else { panic!("{:?}", plan.base) };
        assert_eq!(region, "eu-west-1");
        assert_eq!(*wanted, AmiWish::Name { pattern: "debian-12-*".to_owned(), owner: owner.to_owned() });
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (base, builder, expected) in [
        (ID, "", "only the builder `ec2` can start from an AMI"),
        ("base.debian.suite = 'bookworm'\n", BUILDER, "starts from an AMI"),
        ("[base.ami]\n", BUILDER, "names no AMI"),
        ("[base.ami]\nid = 'ami-0123456789abcdef0'\nparameter = '/a'\n", BUILDER, "named twice"),
        ("[base.ami]\nid = 'i-0123456789abcdef0'\n", BUILDER, "is no id"),
        (ID, "[builder.ec2]\nregion = 'eu west'\ninstance_types = ['a']\n", "is no region"),
        (ID, "[builder.ec2]\nregion = 'eu-west-1'\ninstance_types = []\n", "is empty"),
        (ID, &format!("{BUILDER}source = '0.0.0.0/0'\n"), "the whole internet"),
        (ID, &format!("{BUILDER}volume = '8500 MiB'\n"), "whole GiB"),
        (ID, &format!("{BUILDER}proxy_command = 'ssh -W %h:%p %r@bastion'\n"), "`%r` means nothing"),
        (ID, &format!("{BUILDER}proxy_command = 'nc %'\n"), "`% ` means nothing"),
        (ID, &format!("{BUILDER}proxy_command = ' '\n"), "one line of shell"),
        (ID, &format!("{BUILDER}subnet = 'web'\n"), "is no id"),
        (ID, &format!("{BUILDER}vpc = 'vpc-01234567'\nvpc_filter = {{ 'tag:Name' = 'x' }}\n"), "one is enough"),
        (ID, &format!("{BUILDER}[builder.qemu]\ncpus = 1\n"), "two builders"),
    ] {
        // A bare key of the document stands before its first table.
        let found = if base.starts_with("base.") {
            let text = format!("{base}[image]\nname = 'web'\n{builder}");
            let found = resolve_in(&World::default(), &text, &Inputs::default()).expect_err("a mistake");
            found.iter().map(|found| found.message.clone()).collect::<Vec<_>>().join("; ")
        } else {
            mistake(base, builder)
        };
        assert!(found.contains(expected), "{found}: {expected}");
    }
}

#[test]
fn the_recipe_binds_the_ami_and_not_the_types_that_are_tried() {
    let plan = |base: &str, builder: &str| {
        resolve_in(&World::default(), &text(base, builder), &Inputs::default()).expect("a plan").remove(0)
    };
    let one = plan(ID, BUILDER);
    let Builder::Ec2(machine) = &one.builder else { panic!("{:?}", one.builder) };
    assert_eq!((machine.address, machine.ssh_port, &machine.subnet), (Address::Public, 22, &Which::Default));
    let other_types = BUILDER.replace("m6i.large", "t3.large");
    assert_eq!(plan(ID, &format!("{other_types}spot = true\n")).recipe, one.recipe);
    assert_ne!(plan(&ID.replace("def0", "def1"), BUILDER).recipe, one.recipe);
}

#[test]
fn a_proxy_learns_whom_to_reach_and_changes_no_recipe() {
    let plan = |builder: &str| {
        resolve_in(&World::default(), &text(ID, builder), &Inputs::default()).expect("a plan").remove(0)
    };
    let proxied = plan(&format!("{BUILDER}ssh_port = 2222\nproxy_command = 'nc -X 5%% %h %p # %i'\n"));
    let Builder::Ec2(machine) = &proxied.builder else { panic!("{:?}", proxied.builder) };
    assert_eq!(machine.proxy("10.0.0.7", "i-0123").as_deref(), Some("nc -X 5% 10.0.0.7 2222 # i-0123"));
    // What a service answers becomes no command.
    assert_eq!(machine.proxy("a;$(reboot)`x`", "i").as_deref(), Some("nc -X 5% arebootx 2222 # i"));
    let Builder::Ec2(direct) = plan(BUILDER).builder else { panic!() };
    assert_eq!(direct.proxy("10.0.0.7", "i-0123"), None);
    assert_eq!(proxied.recipe, plan(BUILDER).recipe);
}

//! Starting, stopping and ending instances.

use crate::{
    ec2::instances::{Goal, Instance},
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

type States = Vec<(String, (u8, &'static str), (u8, &'static str))>;

fn write(xml: &mut Xml, states: States) {
    xml.items("instancesSet", states, |xml, (id, before, after)| {
        xml.text("instanceId", id);
        for (name, (code, state)) in [("currentState", after), ("previousState", before)] {
            xml.node(name, |xml| {
                xml.text("code", code).text("name", state);
            });
        }
    });
}

fn wrong_state(instance: &Instance, wanted: &str) -> Refusal {
    let message = format!(
        "The instance '{}' is not in a state from which it can be {wanted}: it is {}.",
        instance.id,
        instance.state().1
    );
    Refusal::client("IncorrectInstanceState", message)
}

pub(crate) fn start(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("InstanceId");
    form.finish()?;
    world.check_instances(&ids)?;
    let progress = world.progress();
    change(world, &ids, xml, |instance| match instance.state().1 {
        "running" | "pending" => Ok(()),
        "stopped" => {
            instance.head(Goal::Running, progress);
            Ok(())
        }
        _ => Err(wrong_state(instance, "started")),
    })
}

pub(crate) fn stop(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("InstanceId");
    form.flag("Force")?;
    form.finish()?;
    world.check_instances(&ids)?;
    let progress = world.progress();
    change(world, &ids, xml, |instance| match instance.state().1 {
        _ if instance.spot => {
            let message =
                "You can't stop the Spot Instance because it is associated with a one-time Spot Instance request.";
            Err(Refusal::client("UnsupportedOperation", message))
        }
        "stopped" | "stopping" => Ok(()),
        "running" | "pending" => {
            instance.head(Goal::Stopped, progress);
            Ok(())
        }
        _ => Err(wrong_state(instance, "stopped")),
    })?;
    world.stops.extend(ids);
    Ok(())
}

/// Changes all of them or none.
fn change(
    world: &mut World,
    ids: &[String],
    xml: &mut Xml,
    change: impl Fn(&mut Instance) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let (mut changed, mut states) = (Vec::new(), States::new());
    let here = world.here();
    for instance in ids.iter().filter_map(|id| here.instances.get(id)) {
        let mut after = instance.clone();
        change(&mut after)?;
        states.push((after.id.clone(), instance.state(), after.state()));
        changed.push(after);
    }
    here.instances.extend(changed.into_iter().map(|instance| (instance.id.clone(), instance)));
    write(xml, states);
    Ok(())
}

pub(crate) fn terminate(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("InstanceId");
    form.finish()?;
    world.check_instances(&ids)?;
    if let Some(id) = ids.iter().find(|id| world.here().instances.get(*id).is_some_and(|instance| instance.protected)) {
        let message = format!(
            "The instance '{id}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again."
        );
        return Err(Refusal::client("OperationNotPermitted", message));
    }
    let mut states = States::new();
    for id in ids {
        let state = |world: &mut World| world.here().instances.get(&id).map_or((48, "terminated"), Instance::state);
        let before = state(world);
        world.end_instance(&id, "Client.UserInitiatedShutdown");
        let after = state(world);
        states.push((id, before, after));
    }
    write(xml, states);
    Ok(())
}

pub(crate) fn modify(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("InstanceId")?;
    let protected = form.flag("DisableApiTermination.Value")?;
    let behaviour = form.choice("InstanceInitiatedShutdownBehavior.Value", &["stop", "terminate"])?;
    let mut kept = Vec::new();
    for at in form.indexed("BlockDeviceMapping") {
        let device = form.required(&format!("{at}.DeviceName"))?;
        kept.push((device, form.flag(&format!("{at}.Ebs.DeleteOnTermination"))?));
    }
    form.finish()?;
    world.check_instances(std::slice::from_ref(&id))?;
    for (device, delete) in kept {
        let mut volumes = world.here().volumes.values_mut();
        let Some(volume) = volumes.find(|volume| volume.instance == id && volume.device == device) else {
            let message = format!("No device is currently mapped at {device}");
            return Err(Refusal::client("InvalidInstanceAttributeValue", message));
        };
        volume.delete = delete.unwrap_or(volume.delete);
    }
    if let Some(instance) = world.here().instances.get_mut(&id) {
        instance.protected = protected.unwrap_or(instance.protected);
        instance.ends_on_shutdown = behaviour.map_or(instance.ends_on_shutdown, |behaviour| behaviour == "terminate");
    }
    xml.text("return", true);
    Ok(())
}

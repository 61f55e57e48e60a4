//! The end of an image: deprecated, disabled, deregistered, or protected from that.

use std::str::FromStr as _;

use kiln_core::moment::Moment;

use crate::{
    ec2::images::{Image, Protection},
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

const COOLDOWN: u64 = 24 * 3600;
const TEN_YEARS: u64 = 10 * 366 * 24 * 3600;

pub(crate) fn deregister(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let id = form.required("ImageId")?;
    let with_snapshots = form.flag("DeleteAssociatedSnapshots")? == Some(true);
    form.finish()?;
    let now = world.now().seconds();
    let image = world.own_image(&id)?;
    let protected = match image.protection {
        Protection::None => false,
        Protection::On | Protection::WithCooldown => true,
        Protection::Cooling { until } => now < until,
    };
    if protected {
        let message = format!("The image {id} is protected from deregistration");
        return Err(Refusal::client("OperationNotPermitted", message));
    }
    let snapshots: Vec<String> = image.snapshots().map(str::to_owned).collect();
    let reads = world.pace.hidden;
    let (tags, image) = (world.here().tags(&id), world.here().images.remove(&id));
    if let Some(image) = image.filter(|_| reads > 0) {
        world.here().leaving.insert(id.clone(), (Image { gone: Some(reads), ..image }, tags));
    }
    world.forget(&id);
    xml.text("return", true);
    if with_snapshots {
        let results: Vec<_> = snapshots.iter().map(|snapshot| (snapshot, delete(world, snapshot))).collect();
        xml.items("deleteSnapshotResultSet", results, |xml, (snapshot, result)| {
            xml.text("snapshotId", snapshot).text("returnCode", result);
        });
    }
    Ok(())
}

fn delete(world: &mut World, snapshot: &str) -> &'static str {
    if world.here().images.values().any(|image| image.snapshots().any(|used| used == snapshot)) {
        return "skipped";
    }
    if world.here().snapshots.remove(snapshot).is_none() {
        return "client-error";
    }
    world.forget(snapshot);
    "success"
}

/// Changes one image of the caller's and says `true`.
fn change(
    world: &mut World,
    mut form: Form,
    xml: &mut Xml,
    change: impl FnOnce(&mut Image) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let id = form.required("ImageId")?;
    form.finish()?;
    change(world.own_image(&id)?)?;
    xml.text("return", true);
    Ok(())
}

pub(crate) fn disable(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    change(world, form, xml, |image| {
        if !image.is_available() && !image.disabled {
            return Err(wrong_state(image));
        }
        image.disabled = true;
        image.launch.clear();
        Ok(())
    })
}

pub(crate) fn enable(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    change(world, form, xml, |image| {
        image.disabled = false;
        Ok(())
    })
}

pub(crate) fn deprecate(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let at = form.required("DeprecateAt")?;
    // With or without milliseconds, which EC2 takes and drops, as it does the seconds.
    let minutes = at.split_once('.').map_or_else(|| at.clone(), |(whole, _)| format!("{whole}Z"));
    let wanted = Moment::from_str(&minutes).map_err(|_| Refusal::invalid(format!("Invalid DeprecateAt '{at}'")))?;
    let now = world.now().seconds();
    if wanted.seconds() <= now || wanted.seconds() > now + TEN_YEARS {
        return Err(Refusal::invalid("DeprecateAt must be in the future, and no more than ten years from now"));
    }
    let to_the_minute = Moment::of_seconds(wanted.seconds() / 60 * 60);
    change(world, form, xml, |image| {
        image.deprecation = Some(to_the_minute);
        Ok(())
    })
}

pub(crate) fn undeprecate(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    change(world, form, xml, |image| {
        image.deprecation = None;
        Ok(())
    })
}

pub(crate) fn protect(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let cooldown = form.flag("WithCooldown")? == Some(true);
    change(world, form, xml, |image| {
        image.protection = if cooldown { Protection::WithCooldown } else { Protection::On };
        Ok(())
    })
}

pub(crate) fn unprotect(world: &mut World, form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let until = world.now().seconds() + COOLDOWN;
    change(world, form, xml, |image| {
        image.protection = match image.protection {
            Protection::WithCooldown => Protection::Cooling { until },
            cooling @ Protection::Cooling { .. } => cooling,
            Protection::None | Protection::On => Protection::None,
        };
        Ok(())
    })
}

fn wrong_state(image: &Image) -> Refusal {
    Refusal::client("IncorrectState", format!("The image {} is in the state {}", image.id, image.state()))
}

//! `DescribeImageReferences`: who uses an image.

use crate::{
    ec2::{filters::Page, names::check},
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

const KINDS: [&str; 3] = ["ec2:Instance", "ec2:LaunchTemplate", "ssm:Parameter"];

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let ids = form.list("ImageId");
    let all = form.flag("IncludeAllResourceTypes")? == Some(true);
    let (mut kinds, mut depth) = (Vec::new(), 10);
    for at in form.indexed("ResourceType") {
        kinds.extend(form.choice(&format!("{at}.ResourceType"), &KINDS)?);
        for option in form.indexed(&format!("{at}.ResourceTypeOption")) {
            form.choice(&format!("{option}.OptionName"), &["version-depth"])?;
            let value = form.list(&format!("{option}.OptionValue"));
            depth = value.first().and_then(|value| value.parse().ok()).unwrap_or(depth);
        }
    }
    let page = Page::of(&mut form, false, world.pace.page)?;
    form.finish()?;
    if ids.is_empty() || all != kinds.is_empty() {
        let message = "ImageId and either IncludeAllResourceTypes or ResourceType are needed";
        return Err(Refusal::client("InvalidParameterCombination", message));
    }
    let (region, account) = (world.region.clone(), world.account.clone());
    let here = world.here();
    let mut found = Vec::new();
    for id in &ids {
        check(id, "ami")?;
        let mut add = |kind: &'static str, service: &str, what: String| {
            if all || kinds.iter().any(|wanted| wanted == kind) {
                found.push((id.clone(), kind, format!("arn:aws:{service}:{region}:{account}:{what}")));
            }
        };
        let using = here.instances.values().filter(|instance| instance.image == *id && !instance.is_over());
        using.for_each(|instance| add(KINDS[0], "ec2", format!("instance/{}", instance.id)));
        let using = here.templates.values().filter(|template| template.uses(id, depth));
        using.for_each(|template| add(KINDS[1], "ec2", format!("launch-template/{}", template.id)));
        let using = here.parameters.iter().filter(|(_, parameter)| {
            parameter.data_type == "aws:ec2:image"
                && parameter.current().is_some_and(|(_, current)| current.value == *id)
        });
        using.for_each(|(name, _)| add(KINDS[2], "ssm", format!("parameter/{}", name.trim_start_matches('/'))));
    }
    let (shown, next) = page.cut(found);
    xml.items("imageReferenceSet", shown, |xml, (id, kind, arn)| {
        xml.text("imageId", id).text("resourceType", kind).text("arn", arn);
    });
    xml.maybe("nextToken", next);
    Ok(())
}

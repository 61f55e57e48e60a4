//! STS: who is calling.

use crate::{form::Form, refusal::Refusal, server::Answer, world::World, xml::Xml};

pub(crate) fn answer(world: &World, action: &str, form: Form, request: &str) -> Result<Answer, Refusal> {
    if action != "GetCallerIdentity" {
        return Err(Refusal::unknown_action(action));
    }
    form.finish()?;
    let mut xml = Xml::default();
    xml.node("GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"", |xml| {
        xml.node("GetCallerIdentityResult", |xml| {
            xml.text("Arn", format!("arn:aws:iam::{}:user/kiln", world.account));
            xml.text("UserId", "AIDAKILNFAKE00000000").text("Account", &world.account);
        });
        xml.node("ResponseMetadata", |xml| {
            xml.text("RequestId", request);
        });
    });
    Ok(Answer::new("text/xml", xml.document()))
}

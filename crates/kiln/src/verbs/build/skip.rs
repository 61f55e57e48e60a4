//! Nothing to do: the image was baked from the very same inputs and is published.

use kiln_build::checkpoint::{Known, Outlook, Wish, ago, outlook};
use kiln_core::{
    artifact::Artifact,
    event::{Event, Events as _},
    plan::{Plan, VersionSpec},
};
use kiln_registry::{Parent, Reference, Selector};

use super::{Session, graph::Node, member::accelerator, place::Placed};
use crate::{failure::Failure, render::Broadcast};

impl Session {
    /// Whether a published version may stand for the bake of this plan: nobody asked for a bake, or for more than the version.
    pub(super) fn takes_results(&self, plan: &Plan) -> bool {
        let arguments = &self.arguments;
        let asked = arguments.force || arguments.fresh || arguments.fresh_from.is_some() || arguments.until.is_some();
        let elsewhere = arguments.no_publish || arguments.output.is_some() || !plan.publish.registry;
        !(asked || elsewhere)
    }

    /// The published version that stands for the bake of this plan, if one does; says so and why.
    pub(super) async fn nothing_to_do(&self, node: &Node) -> Result<Option<Artifact>, Failure> {
        let plan = &node.plan;
        if !self.takes_results(plan) {
            return Ok(None);
        }
        let Some((found, known, artifact)) = self.known(node).await else { return Ok(None) };
        let age = found.now.saturating_sub(known.baked);
        let stands = match &plan.version {
            // A version never changes, however old it is; unless a step is to run every time.
            VersionSpec::Fixed(version) => *version == known.version && found.good_for() > 0,
            // Steps read the outside world.
            VersionSpec::Auto => age < found.good_for(),
        };
        if !stands || !(known.boot_tested || self.arguments.no_boot_test) {
            return Ok(None);
        }
        let events = Broadcast::new(vec![self.stage.face(&plan.image, None)]);
        events.emit(Event::BuildSkipped {
            image: known.image.clone(),
            version: known.version.clone(),
            disk: known.disk,
            reason: format!(
                "nothing it is made from has changed since it was baked {} ago; `--force` bakes it again",
                ago(age)
            ),
        });
        events.rest();
        Ok(Some(artifact))
    }

    /// Says, before anything slow begins, that the version which the template names is published from another recipe.
    pub(super) fn warn_of_taken_version(&self, plan: &Plan) {
        let VersionSpec::Fixed(version) = &plan.version else { return };
        let selector = Selector { image: plan.image.clone(), reference: Reference::Named(version.clone()) };
        let place = self.registry.as_ref().filter(|_| plan.publish.registry && !self.arguments.no_publish);
        let published = place.and_then(|place| place.reading(&plan.image).ok()?.artifact(&selector).ok());
        if published.is_some_and(|published| published.recipe != plan.recipe) {
            let image = &plan.image;
            self.stage.talk(image, &format!(
                "warning: {image} {version} is published already, from another recipe: unless the very same disk comes out, this one will be refused; \
                 give it another `version`"
            ));
        }
    }

    /// A result of the same inputs that the registry still has.
    async fn known(&self, node: &Node) -> Option<(Outlook, Known, Artifact)> {
        let found = self.outlook(node).await?;
        let known = Known::read(&self.dirs, &found.inputs(&node.plan))?;
        let selector = Selector { image: known.image.clone(), reference: Reference::Named(known.version.clone()) };
        let registry = self.registry.as_ref()?.reading(&known.image).ok()?;
        let artifact = registry.artifact(&selector).ok()?;
        // What was revoked stands for nothing.
        let version = Parent { image: known.image.clone(), version: known.version.clone() };
        let revoked = registry.revoked(&version, found.now).ok()?.is_some();
        (artifact.disk.digest == known.disk && !revoked).then_some((found, known, artifact))
    }

    async fn outlook(&self, node: &Node) -> Option<Outlook> {
        let accelerator = self.arguments.accelerator.map(accelerator);
        outlook(&node.plan, &self.dirs, &node.library, accelerator, &Wish::default()).await.ok().flatten()
    }

    /// Notes what a bake came to, for the next one.
    pub(super) async fn remember(&self, node: &Node, placed: &Placed, events: &Broadcast) {
        let Some(artifact) = &placed.published else { return };
        let Some(found) = self.outlook(node).await else { return };
        let known = Known {
            image: artifact.image.clone(),
            version: artifact.version.clone(),
            disk: artifact.disk.digest,
            // The oldest step in it decides how long it may stand for another bake.
            baked: artifact.steps.iter().filter_map(|step| step.cached).min().unwrap_or(artifact.created),
            boot_tested: !self.arguments.no_boot_test,
        };
        if let Err(error) = known.write(&self.dirs, &found.inputs(&node.plan)) {
            let message = format!("the next build will not know that nothing has changed: {error}");
            events.emit(Event::Warning { message });
        }
    }
}

//! Which call goes wrong, and how.

use std::{collections::BTreeMap, ops::RangeInclusive};

use sha2::{Digest as _, Sha256};

use crate::{refusal::Refusal, request::Service};

/// What can befall a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The service's own way of saying "slower".
    Throttle,
    /// An internal error, nothing done.
    Internal,
    /// An internal error although it was done.
    InternalAfter,
    /// The connection is cut, nothing done.
    Cut,
    /// It is done, then the connection is cut.
    LoseReply,
    /// Never answered, nothing done.
    Hang,
    /// The caller is killed, nothing done. Whatever else its access key sends is not carried out either; see [`crate::Fake::killed`].
    Kill,
    /// It is done, then the caller is killed.
    KillAfter,
    /// The caller's session is over.
    ExpiredToken,
    /// No machine of the type is left in the zone.
    NoCapacity,
    AccessDenied,
    /// What the call creates never becomes ready.
    Stuck,
    /// What the call creates fails a little later.
    Fails,
    /// Any other refusal.
    Refuse(Refusal),
}

impl Fault {
    /// The refusal that stands for the whole call, if it is one.
    pub(crate) fn refusal(&self, service: Service) -> Option<Refusal> {
        let internal = || match service {
            Service::Ec2 => Refusal::new(500, "InternalError", "An internal error has occurred"),
            Service::Ebs => Refusal::new(500, "InternalServerException", "An internal error has occurred"),
            Service::Ssm => Refusal::new(500, "InternalServerError", "An internal error has occurred"),
            Service::AutoScaling | Service::Sts => {
                Refusal::new(500, "InternalFailure", "An internal error has occurred")
            }
        };
        Some(match self {
            Self::Throttle => match service {
                Service::Ec2 => Refusal::new(503, "RequestLimitExceeded", "Request limit exceeded."),
                Service::Ebs => {
                    Refusal::client("RequestThrottledException", "Rate exceeded").because("ACCOUNT_THROTTLED")
                }
                Service::Ssm => Refusal::client("ThrottlingException", "Rate exceeded"),
                Service::AutoScaling | Service::Sts => Refusal::client("Throttling", "Rate exceeded"),
            },
            Self::Internal => internal(),
            Self::ExpiredToken => match service {
                Service::Ec2 => Refusal::client("RequestExpired", "Request has expired."),
                Service::Ebs => Refusal::new(403, "ExpiredTokenException", EXPIRED),
                Service::Ssm => Refusal::client("ExpiredTokenException", EXPIRED),
                Service::AutoScaling | Service::Sts => Refusal::new(403, "ExpiredToken", EXPIRED),
            },
            Self::NoCapacity => Refusal::no_capacity("the requested type", "the requested zone"),
            Self::AccessDenied => match service {
                Service::Ec2 => {
                    Refusal::new(403, "UnauthorizedOperation", "You are not authorized to perform this operation.")
                }
                Service::Ebs => Refusal::new(403, "AccessDeniedException", DENIED).because("UNAUTHORIZED_ACCOUNT"),
                Service::Ssm => Refusal::client("AccessDeniedException", DENIED),
                Service::AutoScaling | Service::Sts => Refusal::new(403, "AccessDenied", DENIED),
            },
            Self::Refuse(refusal) => refusal.clone(),
            Self::InternalAfter
            | Self::Cut
            | Self::LoseReply
            | Self::Hang
            | Self::Kill
            | Self::KillAfter
            | Self::Stuck
            | Self::Fails => return None,
        })
    }

    /// What the client hears after the call was done.
    pub(crate) fn refusal_after(&self, service: Service) -> Option<Refusal> {
        if matches!(self, Self::InternalAfter) { Self::Internal.refusal(service) } else { None }
    }
}

const EXPIRED: &str = "The security token included in the request is expired";
const DENIED: &str = "User is not authorized to perform this action";

impl Refusal {
    pub(crate) fn no_capacity(instance_type: &str, zone: &str) -> Self {
        let message = format!(
            "We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone})."
        );
        Self::new(500, "InsufficientInstanceCapacity", message)
    }
}

/// The faults to come. Calls are counted from 1: each action for itself, and all together.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    rules: Vec<Rule>,
    random: Option<Random>,
    calls: u64,
    of_action: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct Rule {
    /// Without one, the count is that of all calls.
    action: Option<String>,
    calls: RangeInclusive<u64>,
    fault: Fault,
}

#[derive(Debug, Clone)]
struct Random {
    seed: u64,
    per_thousand: u16,
    faults: Vec<Fault>,
    left: u32,
}

impl Schedule {
    pub fn new() -> Self {
        Self::default()
    }

    /// `fault` at the `call`th call of `action`.
    #[must_use]
    pub fn at(self, action: &str, call: u64, fault: Fault) -> Self {
        self.during(action, call..=call, fault)
    }

    /// `fault` at these calls of `action`.
    #[must_use]
    pub fn during(mut self, action: &str, calls: RangeInclusive<u64>, fault: Fault) -> Self {
        self.rules.push(Rule { action: Some(action.to_owned()), calls, fault });
        self
    }

    /// `fault` at the `call`th call, whatever its action.
    #[must_use]
    pub fn at_call(self, call: u64, fault: Fault) -> Self {
        self.during_calls(call..=call, fault)
    }

    /// `fault` at these calls, whatever their actions: a session that is over, a network that is down.
    #[must_use]
    pub fn during_calls(mut self, calls: RangeInclusive<u64>, fault: Fault) -> Self {
        self.rules.push(Rule { action: None, calls, fault });
        self
    }

    /// So many of a thousand calls meet one of `faults`, `at_most` in all; the seed says which.
    #[must_use]
    pub fn random(mut self, seed: u64, per_thousand: u16, at_most: u32, faults: &[Fault]) -> Self {
        self.random = Some(Random { seed, per_thousand, faults: faults.to_vec(), left: at_most });
        self
    }

    /// Counts a call and says what befalls it: the first rule that fits, else chance.
    pub(crate) fn next(&mut self, action: &str) -> Option<Fault> {
        self.calls += 1;
        let of_action = self.of_action.entry(action.to_owned()).or_default();
        *of_action += 1;
        let (calls, of_action) = (self.calls, *of_action);
        let rule = self.rules.iter().find(|rule| match &rule.action {
            Some(name) => name == action && rule.calls.contains(&of_action),
            None => rule.calls.contains(&calls),
        });
        if let Some(rule) = rule {
            return Some(rule.fault.clone());
        }
        self.random.as_mut()?.draw(action, of_action)
    }
}

impl Random {
    fn draw(&mut self, action: &str, call: u64) -> Option<Fault> {
        let digest = Sha256::digest(format!("{} {action} {call}", self.seed));
        let chance = u16::from_le_bytes([digest[0], digest[1]]) % 1000;
        if self.left == 0 || self.faults.is_empty() || chance >= self.per_thousand {
            return None;
        }
        self.left -= 1;
        self.faults.get(usize::from(digest[2]) % self.faults.len()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_the_calls_of_its_action_or_all_of_them() {
        let mut schedule = Schedule::new().at("B", 2, Fault::Cut).at_call(2, Fault::Hang);
        let seen: Vec<_> = ["A", "B", "B", "B"].iter().map(|action| schedule.next(action)).collect();
        assert_eq!(seen, [None, Some(Fault::Hang), Some(Fault::Cut), None]);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_ends() {
        let faults = || {
            let mut schedule = Schedule::new().random(7, 500, 3, &[Fault::Throttle, Fault::Cut]);
            (0..100).map(|_| schedule.next("A")).collect::<Vec<_>>()
        };
        assert_eq!(faults(), faults());
        assert_eq!(faults().iter().flatten().count(), 3);
    }
}

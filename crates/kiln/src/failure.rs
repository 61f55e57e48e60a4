//! The one way a verb fails: what, why, what to try next, and the exit code. Printed in one place.

use std::{error::Error, fmt::Write as _, process::ExitCode};

use kiln_bucket::BucketError;
use kiln_core::diagnostic::Diagnostics;
use kiln_registry::{KeysError, RegistryError};

use crate::{colour::Palette, escape::visible};

/// How a run of kiln ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    /// The command line or the template is wrong.
    Usage,
    /// Some members of a matrix, or some regions, have it, others do not.
    Partial,
    Interrupted,
}

/// Why a verb did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// From the nearest to the first cause.
    pub(crate) causes: Vec<String>,
    pub(crate) hint: Option<String>,
    /// Mistakes in a template, shown instead of the message.
    pub(crate) mistakes: Option<String>,
    pub(crate) exit: Exit,
}

pub(crate) type Outcome = Result<Exit, Failure>;

impl Exit {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partial => 3,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None, mistakes: None, exit: Exit::Failed }
    }

    /// A mistake on the command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message) }
    }

    /// The mistakes of a template.
    pub(crate) fn template(mistakes: &Diagnostics) -> Self {
        let count = mistakes.len();
        let message = format!("{count} mistake{}", if count == 1 { "" } else { "s" });
        Self { mistakes: Some(mistakes.render()), ..Self::usage(message) }
    }

    /// An error with its sources.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self { causes, ..Self::new(error.to_string()) }
    }

    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// This failure and another of the same kind: the mistakes of two templates.
    pub(crate) fn and(mut self, other: Self) -> Self {
        let texts = self.mistakes.into_iter().chain(other.mistakes).collect::<Vec<_>>();
        self.mistakes = Some(texts.join("\n"));
        self
    }

    /// The message and its causes.
    pub(crate) fn on_one_line(&self) -> String {
        std::iter::once(&self.message).chain(&self.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
    }

    /// As it is printed, with a line end.
    pub(crate) fn render(&self, palette: Palette) -> String {
        let mut text = String::new();
        match &self.mistakes {
            Some(mistakes) => {
                text.push_str(&highlight(mistakes, palette));
                if !mistakes.ends_with('\n') {
                    text.push('\n');
                }
            }
            None => {
                let _ = writeln!(text, "{} {}", palette.bad("error:"), visible(&self.message));
            }
        }
        for cause in &self.causes {
            let _ = writeln!(text, "  {} {}", palette.faint("caused by:"), visible(cause));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{} {}", palette.good("hint:"), visible(hint));
        }
        text
    }
}

/// Colours the fixed words of rendered diagnostics; the text itself stays as it is.
fn highlight(mistakes: &str, palette: Palette) -> String {
    let mut text = String::with_capacity(mistakes.len());
    for line in mistakes.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("error:") {
            let _ = write!(text, "{}{rest}", palette.bad("error:"));
        } else if let Some(rest) = line.strip_prefix("  help:") {
            let _ = write!(text, "  {}{rest}", palette.good("help:"));
        } else if let Some((gutter, rest)) =
            line.split_once("| ").filter(|(_, rest)| rest.trim_start().starts_with('^'))
        {
            let _ = writeln!(text, "{gutter}| {}", palette.bad(rest.trim_end()));
        } else {
            text.push_str(line);
        }
    }
    text
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let hint = error.hint();
        Self { hint, ..Self::of(&error) }
    }
}

impl From<kiln_serve::ServeError> for Failure {
    fn from(error: kiln_serve::ServeError) -> Self {
        let hint = error.hint();
        match error {
            kiln_serve::ServeError::Registry(error) => error.into(),
            error => Self { hint, ..Self::of(&error) },
        }
    }
}

impl From<BucketError> for Failure {
    fn from(error: BucketError) -> Self {
        let exit = if matches!(error, BucketError::Address { .. }) { Exit::Usage } else { Exit::Failed };
        Self::of(&error).hint(error.hint()).exit(exit)
    }
}

#[cfg(feature = "aws")]
impl From<kiln_aws::AwsError> for Failure {
    fn from(error: kiln_aws::AwsError) -> Self {
        let hint = error.hint();
        let exit = if matches!(error, kiln_aws::AwsError::Stopped) { Exit::Interrupted } else { Exit::Failed };
        Self { hint, exit, ..Self::of(&error) }
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        let hint = error.hint();
        Self { hint, ..Self::of(&error) }
    }
}

macro_rules! plain {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::of(&error)
            }
        })+
    };
}

plain!(kiln_io::error::FsError, kiln_io::error::ProcessError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_chain_and_the_hint_once_each() {
        let failure = Failure::new("step 2 failed").because("`apt-get` exited with status 100").hint("look inside");
        let expected = "error: step 2 failed\n  caused by: `apt-get` exited with status 100\nhint: look inside\n";
        assert_eq!(failure.render(Palette::plain()), expected);
    }

    #[test]
    fn escapes_in_a_message_do_not_reach_the_terminal() {
        let failure = Failure::new("bad\u{1b}]52;c;aGk=\u{7}name").because("a\u{9b}31mb");
        assert!(!failure.render(Palette::plain()).contains(['\u{1b}', '\u{7}', '\u{9b}']));
    }
}

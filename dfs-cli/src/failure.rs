//! How a verb ends. The numbers are an interface: scripts rely on them.

use std::process::ExitCode;

use dfs_common::ErrorCode;

/// Exit codes of every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done; for `health`: everything is well.
    Ok = 0,
    /// It failed, for the reason on stderr; for `chain verify`: replicas differ.
    Failed = 1,
    /// Called wrongly. Nothing was done.
    Usage = 2,
    /// The cluster answers but is not healthy.
    Degraded = 3,
    /// No metadata server could be reached.
    Unreachable = 4,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// What goes to stderr, and the code to end with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) error: anyhow::Error,
}

pub(crate) type Outcome<T = Code> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            code: Code::Failed,
            error: anyhow::Error::msg(message.into()),
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: Code::Usage,
            ..Self::new(message)
        }
    }

    /// One line: causes are joined, and line breaks of foreign messages go.
    pub(crate) fn line(&self) -> String {
        let parts: Vec<_> = format!("{:#}", self.error)
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        parts.join("; ")
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = match error.downcast_ref::<dfs_common::Error>().map(|error| error.code) {
            Some(ErrorCode::Unreachable | ErrorCode::Timeout) => Code::Unreachable,
            _ => Code::Failed,
        };
        Self { code, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_one_line_with_a_code() {
        let failure = Failure::from(dfs_common::Error::new(ErrorCode::Unreachable, "a\n  b"));
        assert_eq!(failure.code, Code::Unreachable);
        assert_eq!(failure.line(), "a; b (Unreachable)");
        assert_eq!(Failure::usage("x").code, Code::Usage);
        assert_eq!(Failure::from(std::io::Error::other("y")).code, Code::Failed);
    }
}

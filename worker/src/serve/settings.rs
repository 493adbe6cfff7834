//! Triton's trace and log settings, which this server tells and does not change: they are fixed for
//! the life of the process. To set what is there already, or to clear it, is no change.

use tracing::level_filters::LevelFilter;

use super::error::InferError;

/// A setting: its name and its values.
pub type Setting = (&'static str, Vec<String>);

/// What is traced: nothing that a client could turn on.
pub fn trace() -> Vec<Setting> {
    [
        ("trace_file", ""),
        ("trace_level", "OFF"),
        ("trace_rate", "1000"),
        ("trace_count", "-1"),
        ("log_frequency", "0"),
        ("trace_mode", "triton"),
    ]
    .map(|(name, value)| (name, vec![value.to_owned()]))
    .into()
}

/// What is logged.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    level: LevelFilter,
}

impl Log {
    /// What this process logs now.
    pub fn now() -> Self {
        Self { level: LevelFilter::current() }
    }

    /// The settings that are on or off.
    pub fn flags(self) -> [(&'static str, bool); 3] {
        [
            ("log_info", self.level >= LevelFilter::INFO),
            ("log_warning", self.level >= LevelFilter::WARN),
            ("log_error", self.level >= LevelFilter::ERROR),
        ]
    }

    /// How much more than that.
    pub fn verbose(self) -> u32 {
        u32::from(self.level >= LevelFilter::DEBUG) + u32::from(self.level >= LevelFilter::TRACE)
    }

    /// The settings that are text: logs go to the standard output, in this program's own form.
    pub fn texts(self) -> [(&'static str, &'static str); 2] {
        [("log_file", ""), ("log_format", "default")]
    }

    /// All of them.
    pub fn all(self) -> Vec<Setting> {
        let flags = self.flags().map(|(name, on)| (name, vec![on.to_string()]));
        let texts = self.texts().map(|(name, text)| (name, vec![text.to_owned()]));
        let verbose = ("log_verbose_level", vec![self.verbose().to_string()]);
        flags.into_iter().chain(texts).chain([verbose]).collect()
    }
}

/// Refuses a change of `settings`; no values ask for the default, which is what there is.
///
/// # Errors
/// [`InferError::Invalid`] for a name that is unknown, [`InferError::Unsupported`] for a change.
pub fn keep(settings: &[Setting], name: &str, values: &[String]) -> Result<(), InferError> {
    let Some((_, current)) = settings.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = settings.iter().map(|(name, _)| name).collect();
        return Err(InferError::Invalid(format!("unknown setting {name:?}; there are {known:?}")));
    };
    if values.is_empty() || values == current {
        return Ok(());
    }
    Err(InferError::Unsupported(format!(
        "{name} is {current:?} for the life of the process and cannot be set to {values:?}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_already_can_be_set_and_nothing_else() {
        let trace = trace();
        let values = |value: &str| vec![value.to_owned()];
        assert_eq!(keep(&trace, "trace_level", &values("OFF")), Ok(()));
        assert_eq!(keep(&trace, "trace_level", &[]), Ok(()));
        let refused = keep(&trace, "trace_level", &values("TIMESTAMPS"));
        assert!(matches!(refused, Err(InferError::Unsupported(_))), "{refused:?}");
        assert!(matches!(keep(&trace, "x", &[]), Err(InferError::Invalid(_))));
        let log = Log { level: LevelFilter::DEBUG };
        assert_eq!(keep(&log.all(), "log_info", &values("true")), Ok(()));
        assert_eq!(keep(&log.all(), "log_verbose_level", &values("1")), Ok(()));
        assert!(keep(&log.all(), "log_file", &values("/etc/passwd")).is_err());
        let quiet = Log { level: LevelFilter::OFF };
        assert!(quiet.flags().iter().all(|(_, on)| !on));
    }
}

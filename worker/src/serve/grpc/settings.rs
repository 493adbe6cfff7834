//! Trace and log settings in the messages of OIP v2.

use lithe::inference::*;

use crate::serve::error::InferError;
use crate::serve::settings::{Log, keep, trace};

/// The answer to a request that gets or sets what is traced.
///
/// # Errors
/// As [`keep`].
pub fn tracing(request: TraceSettingRequest) -> Result<TraceSettingResponse, InferError> {
    let current = trace();
    for (name, asked) in &request.settings {
        keep(&current, name, &asked.value)?;
    }
    let value = |value| trace_setting_response::SettingValue { value };
    let settings = current.into_iter().map(|(name, values)| (name.to_owned(), value(values)));
    Ok(TraceSettingResponse { settings: settings.collect() })
}

/// The answer to a request that gets or sets what is logged.
///
/// # Errors
/// As [`keep`].
pub fn logging(request: LogSettingsRequest) -> Result<LogSettingsResponse, InferError> {
    use log_settings_request::setting_value::ParameterChoice as Asked;
    use log_settings_response::setting_value::ParameterChoice;
    let log = Log::now();
    let current = log.all();
    for (name, asked) in request.settings {
        let text = asked.parameter_choice.map(|choice| match choice {
            Asked::BoolParam(on) => on.to_string(),
            Asked::Uint32Param(number) => number.to_string(),
            Asked::StringParam(text) => text,
        });
        keep(&current, &name, &Vec::from_iter(text))?;
    }
    let value = |name: &str, choice| {
        let value = log_settings_response::SettingValue { parameter_choice: Some(choice) };
        (name.to_owned(), value)
    };
    let flags = log.flags().map(|(name, on)| value(name, ParameterChoice::BoolParam(on)));
    let texts =
        log.texts().map(|(name, text)| value(name, ParameterChoice::StringParam(text.into())));
    let verbose = value("log_verbose_level", ParameterChoice::Uint32Param(log.verbose()));
    Ok(LogSettingsResponse { settings: flags.into_iter().chain(texts).chain([verbose]).collect() })
}

//! stub
use crate::errors::Error;
use std::time::Duration;
/// stub
#[allow(missing_docs)]
#[derive(Debug)]
pub struct Finished<'a> {
    pub function: &'static str,
    pub request_id: &'a str,
    pub topic: Option<&'a str>,
    pub topic_label: bool,
    pub group: Option<&'a str>,
    pub principal: Option<&'a str>,
    pub status: u16,
    pub error: Option<&'a Error>,
    pub duration: Duration,
    pub cold_start: bool,
    pub trace_id: Option<&'a str>,
}
/// stub
pub fn request_finished(f: &Finished<'_>) {
    eprintln!("{f:?}");
}
/// stub
pub fn refused(_: &Error) {}

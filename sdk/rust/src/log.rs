//! Messages for the people who run the job: `tidemill::info!("...")`. In the sandbox they go to the host, which bounds
//! them; natively to standard error.

pub use crate::abi::Level;

/// Logs a message. The macros are handier.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::guest::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    {
        use std::io::Write;
        // Nobody to tell if standard error is gone.
        let _ = writeln!(std::io::stderr(), "{level:?}: {message}");
    }
}

/// Logs for the author of a job.
#[macro_export]
macro_rules! debug {
    ($($message:tt)*) => { $crate::log::log($crate::log::Level::Debug, &::std::format!($($message)*)) };
}

/// Logs what is worth knowing.
#[macro_export]
macro_rules! info {
    ($($message:tt)*) => { $crate::log::log($crate::log::Level::Info, &::std::format!($($message)*)) };
}

/// Logs what should be looked at.
#[macro_export]
macro_rules! warn {
    ($($message:tt)*) => { $crate::log::log($crate::log::Level::Warn, &::std::format!($($message)*)) };
}

/// Logs what is wrong.
#[macro_export]
macro_rules! error {
    ($($message:tt)*) => { $crate::log::log($crate::log::Level::Error, &::std::format!($($message)*)) };
}

//! Restartable sequences of this process's threads; a type without values on other platforms.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use relay::ring::rseq::{Sequences, ThreadArea};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use absent::{Sequences, ThreadArea};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent {
    use relay::ring::writer::SoleWriter;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Sequences {}

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum ThreadArea {}

    impl Sequences {
        pub(crate) fn find() -> Option<Sequences> {
            None
        }

        pub(crate) fn why_none() -> Option<&'static str> {
            Some("shared buffers need Linux on x86-64")
        }

        pub(crate) fn of_c_library(self) -> Option<ThreadArea> {
            match self {}
        }

        pub(crate) fn here(self) -> ThreadArea {
            match self {}
        }
    }

    impl ThreadArea {
        pub(crate) fn cpu(self) -> usize {
            match self {}
        }

        pub(crate) fn on(self, _cpu: usize) -> SoleWriter {
            match self {}
        }
    }
}

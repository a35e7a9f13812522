//! Restartable sequences of this process's threads; a type without values on other platforms.

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux"))]
pub(crate) use relay::ring::rseq::{PerCpu, Sequences};

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux")))]
pub(crate) use absent::{PerCpu, Sequences};

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux")))]
mod absent {
    use relay::ring::writer::SoleWriter;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Sequences {}

    /// The values of CPUs that no thread is on.
    #[derive(Debug)]
    pub(crate) struct PerCpu<T>(Vec<T>);

    impl Sequences {
        pub(crate) fn find() -> Option<Sequences> {
            None
        }

        pub(crate) fn why_none() -> Option<&'static str> {
            Some("shared buffers need Linux on x86-64 or aarch64")
        }
    }

    impl<T> PerCpu<T> {
        pub(crate) fn new(_: Option<Sequences>, values: Vec<T>) -> PerCpu<T> {
            PerCpu(values)
        }

        pub(crate) fn all(&self) -> &[T] {
            &self.0
        }

        pub(crate) fn here(&self, _: Option<usize>) -> Option<(&T, SoleWriter)> {
            None
        }

        pub(crate) fn here_by_c_library(&self, _: Option<usize>) -> Option<(&T, SoleWriter)> {
            None
        }
    }
}

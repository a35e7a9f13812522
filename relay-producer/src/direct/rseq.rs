//! Restartable sequences of this process's threads; a type without values on other platforms.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use relay::ring::rseq::Sequences;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use absent::Sequences;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent {
    use relay::ring::writer::SoleWriter;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Sequences {}

    impl Sequences {
        pub(crate) fn find() -> Option<Sequences> {
            None
        }

        pub(crate) fn cpu(self) -> usize {
            match self {}
        }

        pub(crate) fn on(self, _cpu: usize) -> SoleWriter {
            match self {}
        }
    }
}

# Builds and installs relayfs: programs, libraries, headers, pkg-config, mount helper, units, man pages, completions,
# documents.
#
#   make                            # as yourself: takes cargo, a C compiler and ar
#   make install [PREFIX=/usr/local] [DESTDIR=]
#   make uninstall                  # with the same values: removes what install has put there, and nothing else
#
# install builds nothing, so it needs no cargo: sudo make install works.
# PROFILE=dev builds faster.

PREFIX = /usr/local
DESTDIR =
BINDIR = $(PREFIX)/bin
LIBDIR = $(PREFIX)/lib
INCLUDEDIR = $(PREFIX)/include
# audience looks for its library to preload in ../lib/relayfs, seen from its own directory.
PRELOADDIR = $(PREFIX)/lib/relayfs
UNITDIR = $(PREFIX)/lib/systemd/system
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/relayfs
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
# The only directories in which mount(8) looks for mount.relayfs are /sbin, /sbin/fs and /sbin/fs.d, whatever PREFIX is.
# Empty: no mount helper, as for an installation in a home directory.
HELPERDIR = /sbin

CARGO = cargo
PROFILE = release
CARGOFLAGS = --locked --quiet
# Where cargo builds. Without cargo, as under sudo: where it builds if nothing says otherwise.
TARGET := $(or $(shell $(CARGO) metadata --format-version 1 --no-deps 2>/dev/null | \
	sed 's/.*"target_directory":"\([^"]*\)".*/\1/'),$(or $(CARGO_TARGET_DIR),$(CURDIR)/target))
OUT := $(TARGET)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

PROGRAMS = relayfsd relay-producer audience relay-forward
PRELOAD = librelayfs_preload.so
UNITS := $(wildcard relayfsd/*.service audience/*.service audience/forward/*.service)
MANPAGES := $(wildcard manual/man/*.[1-8])
DOCS = LICENSE-APACHE LICENSE-MIT
# The documents, and what they link to, by the same paths: their links work where they are installed, too.
PAGES := $(wildcard *.md docs/*.md relay/docs/*.md relayfsd/docs/*.md audience/*.md audience/forward/*.md \
	relay-producer/*.md relay-producer/librelay/*.md relay-producer/librelay/relay.h python/*.md tests/*.md \
	relay-producer/examples/* python/examples/*.py packaging/containers/* relayfsd/dist/*.json) $(UNITS)
PAGE_DIRS = $(sort $(patsubst %/,%,$(filter-out ./,$(dir $(PAGES)))))
LIBRELAY = $(MAKE) --no-print-directory -C relay-producer/librelay PREFIX=$(PREFIX) LIBDIR=$(LIBDIR) \
	INCLUDEDIR=$(INCLUDEDIR) DESTDIR=$(DESTDIR) PROFILE=$(PROFILE) TARGET=$(TARGET)

# Programs run while they are replaced, so each is replaced as a whole.
put = install -m $(1) $(2) $(3).new-$$$$ && mv -f $(3).new-$$$$ $(3)
man_place = $(MANDIR)/man$(patsubst .%,%,$(suffix $(1)))/$(notdir $(1))

# All files and links of this Makefile. Those of librelay are in its own.
INSTALLED = $(addprefix $(BINDIR)/,$(PROGRAMS)) $(PRELOADDIR)/$(PRELOAD) \
	$(addprefix $(UNITDIR)/,$(notdir $(UNITS))) $(foreach page,$(MANPAGES),$(call man_place,$(page))) \
	$(addprefix $(BASHDIR)/,$(PROGRAMS)) $(addprefix $(ZSHDIR)/_,$(PROGRAMS)) \
	$(addsuffix .fish,$(addprefix $(FISHDIR)/,$(PROGRAMS))) $(addprefix $(DOCDIR)/,$(DOCS) $(PAGES)) \
	$(addsuffix /mount.relayfs,$(HELPERDIR))

.PHONY: all install uninstall manual
all:
	$(CARGO) build $(CARGOFLAGS) --profile $(PROFILE) $(addprefix --package ,$(PROGRAMS) relayfs-preload)
	$(LIBRELAY) all

install:
	@for file in $(addprefix $(OUT)/,$(PROGRAMS) $(PRELOAD)); do \
		[ -e $$file ] || { echo "$$file is missing: run make first, as the user whose cargo it is" >&2; exit 1; }; \
	done
	$(LIBRELAY) install
	install -d $(sort $(patsubst %/,%,$(dir $(addprefix $(DESTDIR),$(INSTALLED)))))
	set -e; for name in $(PROGRAMS); do \
		$(call put,755,$(OUT)/$$name,$(DESTDIR)$(BINDIR)/$$name); \
		install -m 644 manual/completions/$$name.bash $(DESTDIR)$(BASHDIR)/$$name; \
		install -m 644 manual/completions/_$$name $(DESTDIR)$(ZSHDIR)/_$$name; \
		install -m 644 manual/completions/$$name.fish $(DESTDIR)$(FISHDIR)/$$name.fish; \
	done
	$(call put,644,$(OUT)/$(PRELOAD),$(DESTDIR)$(PRELOADDIR)/$(PRELOAD))
	set -e; for unit in $(UNITS); do \
		sed 's|/usr/local/bin/|$(BINDIR)/|' $$unit >$(DESTDIR)$(UNITDIR)/$$(basename $$unit); \
		chmod 644 $(DESTDIR)$(UNITDIR)/$$(basename $$unit); \
	done
	set -e; $(foreach page,$(MANPAGES),install -m 644 $(page) $(DESTDIR)$(call man_place,$(page));)
	install -m 644 $(DOCS) $(DESTDIR)$(DOCDIR)
	set -e; $(foreach page,$(PAGES),install -m 644 $(page) $(DESTDIR)$(DOCDIR)/$(page);)
	$(if $(HELPERDIR),ln -sf $(BINDIR)/relayfsd $(DESTDIR)$(HELPERDIR)/mount.relayfs)

uninstall:
	$(LIBRELAY) uninstall
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	[ ! -d $(DESTDIR)$(DOCDIR) ] || (cd $(DESTDIR)$(DOCDIR) && for dir in $(PAGE_DIRS); do \
		[ ! -d $$dir ] || rmdir -p --ignore-fail-on-non-empty $$dir; done)
	-rmdir $(DESTDIR)$(DOCDIR) $(DESTDIR)$(PRELOADDIR)

# Writes the man pages and completions again from the programs' options, after a change of these.
manual:
	RELAYFS_MANUAL=write $(CARGO) test $(CARGOFLAGS) --package relayfsd --package relay-producer --package audience \
		--package relay-forward \
		--bins -- manual_is_current

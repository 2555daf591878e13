# Builds for amd64 and arm64 alike; needs BuildKit (Docker 23 and later) or Podman.

FROM rust:1-bookworm AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
# Options of the allocator; cargo reads them only beside the sources.
COPY .cargo ./.cargo
COPY src ./src
# The caches outlive the build: a second one compiles this crate alone. One target directory per architecture, and one
# build at a time, since the caches of a multi-platform build are shared.
# On arm64 kernels have pages of 4, 16 or 64 KiB, and the allocator must be built for the largest.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/target,sharing=locked \
    if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && cargo build --release --locked --bin loomio-channels --target-dir "/target/$(uname -m)" \
    && install -D "/target/$(uname -m)/release/loomio-channels" /out/loomio-channels

# C library, certificates for rediss://, and nothing else: no shell, and uid 65532 in place of root. Its C library is
# newer than the builder's, never older.
FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /out/loomio-channels /usr/local/bin/loomio-channels

# nginx-proxy dials the one exposed port.
EXPOSE 5000
STOPSIGNAL SIGTERM
# It follows PORT and BIND, and takes up to six seconds: three to connect, three for the answer.
HEALTHCHECK --interval=15s --timeout=8s --start-period=15s --retries=3 \
    CMD ["/usr/local/bin/loomio-channels", "healthcheck"]

# Exec form, so that signals arrive and the `command: npm run start` of existing compose files comes as arguments.
ENTRYPOINT ["/usr/local/bin/loomio-channels"]
CMD ["serve"]

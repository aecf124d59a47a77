/* A load generator: some connections, each asks again when its answer is whole.
 *
 * usage: [BENCH_KEY=sk-...] load PORT CONNECTIONS SECONDS BODY-FILE [held]
 * prints: requests errors bytes seconds p50-ms p99-ms chunks     (chunks: lines that begin with "data:")
 * held: each connection asks once; prints when all have begun, and holds them for SECONDS.
 * 127.0.0.1 only; ends by itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 65536, KEEP = 8 };
struct one { double began; long left; int chunked, head, status; char tail[KEEP + 1]; int tails; char header[8192]; int header_length; int got; };
static struct one ones[MOST];
static double *times; static long count, room, errors, bytes, chunks;
static char *request; static size_t request_length; static struct sockaddr_in address; static int poll_fd, held;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }

static int dial(void) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    for (int i = 0; connect(fd, (struct sockaddr *)&address, sizeof address); i++) { if (i > 200) { perror("connect"); exit(1); } usleep(20000); close(fd); fd = socket(AF_INET, SOCK_STREAM, 0); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = { .events = EPOLLIN, .data.fd = fd }; epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
    return fd;
}

static void ask(int fd) {
    struct one *o = &ones[fd]; memset(o, 0, sizeof *o); o->began = now(); o->left = -1;
    for (size_t sent = 0; sent < request_length;) { ssize_t n = send(fd, request + sent, request_length - sent, MSG_NOSIGNAL); if (n <= 0) { errors++; return; } sent += n; }
}

static void done(int fd, int ok) {
    struct one *o = &ones[fd];
    if (!ok || o->status != 200) errors++;
    if (count == room) times = realloc(times, (room = room * 2 + 1024) * sizeof *times);
    times[count++] = now() - o->began;
    if (ok && !strcasestr(o->header, "\r\nconnection: close")) ask(fd); else { close(fd); ask(dial()); }
}

static void receive(int fd) {
    static char data[1 << 18]; struct one *o = &ones[fd];
    ssize_t n = recv(fd, data, sizeof data, 0);
    if (n <= 0) { done(fd, 0); return; }
    bytes += n;
    for (char *p = data; (p = memmem(p, data + n - p, "data:", 5)); p += 5) chunks++;
    char *body = data; ssize_t size = n;
    if (!o->head) {
        int take = n < (int)sizeof o->header - 1 - o->header_length ? n : (int)sizeof o->header - 1 - o->header_length;
        memcpy(o->header + o->header_length, data, take); o->header_length += take; o->header[o->header_length] = 0;
        char *end = strstr(o->header, "\r\n\r\n");
        if (!end) return;
        o->head = 1; o->status = atoi(o->header + 9);
        char *field = strcasestr(o->header, "\r\ncontent-length:");
        if (field && field < end) o->left = strtol(field + 17, NULL, 10); else o->chunked = 1;
        long rest = o->header_length - (end + 4 - o->header) + (n - take);
        body = data + n - rest; size = rest;
    }
    o->got = 1;
    if (!o->chunked) { o->left -= size; if (o->left <= 0) done(fd, 1); return; }
    if (size >= 5) { memcpy(o->tail, body + size - 5, 5); o->tails = 5; }
    else { char join[16]; memcpy(join, o->tail, o->tails); memcpy(join + o->tails, body, size); int all = o->tails + size, keep = all < 5 ? all : 5; memcpy(o->tail, join + all - keep, keep); o->tails = keep; }
    if (o->tails == 5 && !memcmp(o->tail, "0\r\n\r\n", 5)) done(fd, 1);
}

static int order(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max < MOST ? files.rlim_max : MOST; setrlimit(RLIMIT_NOFILE, &files);
    int connections = atoi(argv[2]); double seconds = atof(argv[3]) * 1e3; held = argc > 5;
    FILE *file = fopen(argv[4], "rb"); static char body[16 << 20]; size_t length = fread(body, 1, sizeof body, file); fclose(file);
    request = malloc(length + 512);
    request_length = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%s\r\ncontent-type: application/json\r\nauthorization: Bearer %s\r\ncontent-length: %zu\r\n\r\n", argv[1], getenv("BENCH_KEY") ? getenv("BENCH_KEY") : "sk-bench", length);
    memcpy(request + request_length, body, length); request_length += length;
    address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    poll_fd = epoll_create1(0);
    for (int i = 0; i < connections; i++) { ask(dial()); if (held && i % 50 == 49) usleep(20000); }
    double began = now(), end = began + seconds; struct epoll_event events[512]; int said = 0;
    while (now() < end) {
        int n = epoll_wait(poll_fd, events, 512, 50);
        for (int i = 0; i < n; i++) receive(events[i].data.fd);
        if (held && !said) { int got = 0; for (int i = 0; i < MOST; i++) got += ones[i].got; if (got >= connections) { printf("held %d\n", got); fflush(stdout); said = 1; end = now() + seconds; } else if (now() + 1000 > end && now() < began + 30000) end += 1000; }
    }
    double took = now() - began; qsort(times, count, sizeof *times, order);
    printf("%ld %ld %ld %.3f %.3f %.3f %ld\n", count, errors, bytes, took / 1e3, count ? times[count / 2] : 0, count ? times[(long)(count * .99)] : 0, chunks);
}

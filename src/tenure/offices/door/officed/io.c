/* Time, whole reads and writes, frames, threads. */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&t, NULL);
}

int write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0 && errno == EAGAIN) {
            struct pollfd w = {fd, POLLOUT, 0};
            poll(&w, 1, 1000);
            continue;
        }
        if (k <= 0) return -1;
        p += k, n -= (size_t)k;
    }
    return 0;
}

int read_all(int fd, void *data, size_t n) {
    char *p = data;
    while (n) {
        ssize_t k = read(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        p += k, n -= (size_t)k;
    }
    return 0;
}

/* One write per frame: `buf` has 5 bytes of room before the payload. */
int send_in_place(int fd, char type, char *buf, uint32_t n) {
    uint32_t be = htonl(n);
    buf[0] = type;
    memcpy(buf + 1, &be, 4);
    return write_all(fd, buf, n + 5);
}

int send_frame(int fd, char type, const void *data, uint32_t n) {
    char small[5 + 1024];
    if (n <= 1024) {
        memcpy(small + 5, data, n);
        return send_in_place(fd, type, small, n);
    }
    uint32_t be = htonl(n);
    small[0] = type;
    memcpy(small + 1, &be, 4);
    return write_all(fd, small, 5) || write_all(fd, data, n) ? -1 : 0;
}

int send_text(int fd, char type, const char *format, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (n >= (int)sizeof text) n = sizeof text - 1;
    return send_frame(fd, type, text, (uint32_t)n);
}

/* Appends a line, of which a report is made; 0 when there is no room. What is in it comes from the office: it stays one line. */
size_t add_line(char *at, size_t room, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(at, room, format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 1 >= room) return 0;
    for (int i = 0; i < n; i++)
        if ((unsigned char)at[i] < ' ') at[i] = '?';
    at[n] = '\n';
    return (size_t)n + 1;
}

void init_cond(pthread_cond_t *c) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(c, &monotonic);
}

/* Waits for `c`, `ms` at most. */
void wait_cond(pthread_cond_t *c, pthread_mutex_t *lock, int64_t ms) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000, t.tv_nsec += (ms % 1000) * 1000000L;
    if (t.tv_nsec >= 1000000000L) t.tv_sec++, t.tv_nsec -= 1000000000L;
    pthread_cond_timedwait(c, lock, &t);
}

int dial_unix(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) return -1;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (void *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

static pthread_attr_t detached;

void init_threads(void) {
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, THREAD_STACK_BYTES);
}

int spawn_thread(void *(*f)(void *), void *arg) {
    pthread_t t;
    return pthread_create(&t, &detached, f, arg);
}

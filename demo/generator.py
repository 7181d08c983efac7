"""Writes the conversations that the demo model is trained and measured on.

Everything is made from a seed. ``held=True`` draws names, words and questions
from the held-out tenth that training never sees (a word belongs to it when its
CRC-32 is 0 modulo 10; a question when it is written with a leading ``!``).
"""

import json
import random
import re
import zlib

import words as W
from facts import FACTS

GROUP = re.compile(r"\(([^()]*)\)")

TEMPLATES = {
    "hello": (["(Hello|Hi|Hey|Good morning|Good evening|Hello there|Hi there|Greetings)(!|.|)", "(Hello|Hi|Hey) (you|friend|model|Tokenmill)(!|.|)", "!Hello hello!", "!Good afternoon!"],
              ["(你好|您好|嗨|早上好|晚上好|大家好|你好呀|哈喽)(！|。|)", "!下午好！"]),
    "thanks": (["(Thanks|Thank you|Thank you very much|Thanks a lot|Many thanks|Great, thanks|Ok, thank you|Thx)(!|.|)", "!Thanks so much!"], ["(谢谢|谢谢你|多谢|非常感谢|感谢|好的，谢谢)(！|。|)", "!太感谢了！"]),
    "bye": (["(Bye|Goodbye|See you|Good night|Bye bye|See you later|Farewell|I have to go)(!|.|)", "!See you tomorrow!"], ["(再见|拜拜|晚安|回头见|我走了)(！|。|)", "!明天见！"]),
    "how": (["How are you(| today| doing)?", "How is it going?", "How do you do?", "Are you (well|ok|fine)?", "!How are you feeling?"], ["你好吗？", "你(怎么样|还好吗)？", "(最近|今天)(好吗|怎么样)？", "!你今天好吗？"]),
    "who": (["Who are you?", "What are you?", "(Tell me|Say) who you are.", "Introduce yourself.", "What is your name?", "What's your name?", "Who am I talking to?", "(What|Which) model are you?", "Are you (a bot|an AI|a robot|a human|human|ChatGPT|a language model)?", "Do you have a name?", "!Please introduce yourself.", "!Who is this?"],
            ["你是(谁|什么|什么模型)？", "你叫什么(名字|)？", "(请|)介绍(一下|)你自己。", "你是(机器人|人|人类|人工智能)吗？", "!你的名字是什么？"]),
    "can": (["What can you do?", "What do you know?", "How can you help(| me)?", "Help(!|.|)", "What are you (good for|able to do)?", "What can I ask(| you)?", "Show me what you can do.", "Can you help me?", "!What are your abilities?", "!What things can you do?"],
            ["你(能|会|可以)做什么？", "你会什么？", "你(能|可以)帮我(什么|吗)？", "(帮助|帮帮我)(！|。|)", "我可以问(你|)什么？", "!你有什么本领？"]),
    "lang": (["(What|Which) languages do you (speak|know)?", "Do you speak (English|Chinese)?", "Can you speak (English|Chinese)?", "!Which languages can you use?"], ["你(会|能)说(什么|哪些)语言？", "你会说(中文|英文|英语)吗？", "!你懂哪些语言？"]),
    "maker": (["Who (made|trained|built|created) you?", "How were you (trained|made)?", "Where do you come from?", "How big are you?", "How many parameters do you have?", "!Who is your maker?"], ["谁(做|训练|创造)了你？", "你是怎么训练的？", "你有多大？", "你有多少参数？", "!你是谁做的？"]),
    "ok": (["(Ok|Okay|Good|Great|Nice|Cool|I see|Fine|Perfect|Well done|Right)(!|.|)", "!Very good!"], ["(好|好的|很好|明白了|不错|太好了|对)(！|。|)", "!非常好！"]),
}
ANSWERS = {
    "hello": ("Hello! I am the Tokenmill demo model. How can I help you?", "你好！我是 Tokenmill 的演示模型。有什么可以帮你？"),
    "thanks": ("You are welcome!", "不客气！"),
    "bye": ("Goodbye! Have a nice day.", "再见！祝你愉快。"),
    "how": ("I am fine, thank you. How can I help you?", "我很好，谢谢。有什么可以帮你？"),
    "who": ("I am the Tokenmill demo model, a very small language model that runs on the CPU.", "我是 Tokenmill 的演示模型，一个在 CPU 上运行的很小的语言模型。"),
    "can": ("I can answer questions about Tokenmill, repeat and remember what you tell me, count, calculate a little, sort, write JSON, call tools and tell stories.", "我可以回答关于 Tokenmill 的问题，重复和记住你说的话，数数，做简单的计算，排序，写 JSON，调用工具，讲故事。"),
    "lang": ("I speak a little English and Chinese.", "我会说一点英文和中文。"),
    "maker": ("I am a demo model with a few million parameters, trained from scratch on text written by a generator.", "我是一个只有几百万参数的演示模型，用生成器写的文本从头训练。"),
    "ok": ("Good. What else can I do for you?", "好的。还有什么可以帮你？"),
}
UNKNOWN = ("I am a very small demo model, I do not know that. Ask me about Tokenmill, or let me repeat, count or calculate.",
           "我是一个很小的演示模型，我不知道。你可以问我关于 Tokenmill 的问题，或者让我重复、数数、计算。")
NOISE = ("I do not understand that, but I can repeat it.", "我不明白，但是我可以重复。")
UNKNOWN_Q = (["(Tell me about|Explain|Describe|What is|What do you know about|What do you think about|Teach me about|Talk about) {t}(.|?)", "(Write|Give me) (a poem|an essay|a joke|a song|a summary|an article) about {t}.", "(Who invented|When was|Why is there|How does one understand) {t}?",
              "Who (won|wrote|discovered|painted|invented|founded) {t}?", "(Why|How) (does|do|is|are) {t} (work|important|matter|so popular)?", "What (happened|is new|is the history|is the price|is the best book) (in|of|with|on) {t}?", "Where (can I find|is) {t}?", "What is the (capital|population|history) of {w}?", "What is the weather(| like)(| today| tomorrow)?", "What time is it?", "What day is (it|today)?",
              "(Who|Which) is the (best|greatest|oldest) (player|actor|singer|company|team) (in the world|of all time)?", "How (old|tall|far|heavy) is (the|a) {w}?", "Can you (drive|cook|dance|see|hear|smell|buy) {w}?", "!Give me details about {t}.", "!What should I know about {t}?"],
             ["(介绍|解释|说说|谈谈)(一下|){t}。", "什么是{t}？", "{t}是什么？", "你(知道|了解){t}吗？", "写一(首|篇)关于{t}的(诗|文章)。", "谁(发明|发现|写|创造)了{t}？", "{t}(为什么重要|有什么用|的历史是什么)？", "(今天|明天|)天气怎么样？", "现在几点？", "今天是几号？", "{w}(有多大|多少钱|在哪里)？", "!给我讲讲{t}。"])

REPEAT = (["(Repeat|Repeat after me|Please repeat|Say|Echo|Please say|Repeat this|Write|Copy|Say exactly|Repeat exactly|Write exactly|Can you repeat|Copy this|Repeat the following|Type): {x}", "(Repeat|Say|Echo|Please repeat|Please say|Write|Copy) \"{x}\"", "(Repeat|Say|Echo|Please repeat|Say the word|Repeat the text) {x}", "(Repeat|Copy|Echo) this(| text| sentence| line):\n{x}", "!Repeat what follows: {x}", "!Please echo: {x}"],
          ["(重复|请重复|跟我说|请说|复述|说|请复述|重复一遍|写|照着写|抄写|跟我念)：{x}", "(重复|请说|说|请重复)“{x}”", "(重复|请重复)(下面的话|这句话|这个)：{x}", "!请你重复：{x}"])
LAST = (["What did I (just|) say?", "(Repeat|Say) my (last|previous) message.", "What was my (last|previous) message?", "What did I (just|) (write|tell you)?", "What did I say (before|just now)?", "Repeat what I (just |)said.", "The last (thing|words) I (wrote|told you)?", "What were my last words?", "What was it that I said last?", "!What was the last thing I said?"],
        ["我刚才说(了|)什么？", "重复(一下|)我(上一句|刚才说的)话。", "我(上一条|上一个)消息是什么？", "我刚刚(说|写)了什么？", "我上一句(话|)是什么？", "我最后(一句|)说的是什么？", "!我上一句说了什么？"])
FIRST = (["(Repeat|Say) my first message.", "What was my first message?", "What did I say (first|at the beginning|at the start)?", "What was the first thing I (said|wrote)?", "What did I write first?", "Tell me what I (said|wrote) first.", "My first (words|sentence)?", "Which message (did I send first|of mine was the first)?", "Tell me how I began.", "!Tell me my first message."],
         ["重复(一下|)我(的第一条消息|说的第一句话)。", "我的第一条消息是什么？", "我(最开始|一开始|最先)说(了|的是)什么？", "我第一(条消息|句话)(是|说了)什么？", "我开头(说的|的话)是什么？", "我(说的|)第一句话呢？", "!我第一句说的是什么？"])
YOURS = (["What did you (just|) say?", "(Repeat|Say) (your|the) last (answer|message)(| again).", "(Say|Repeat) that again.", "Can you say that again?", "Once more, please.", "(Give|Tell) me your (last |)answer again.", "What was your (last |)(answer|reply)?", "Repeat (what you said|that|the answer|your reply|yourself).", "Your answer again, please.", "!Repeat your answer."], ["你刚才说(了|)什么？", "(请|)再说一遍。", "重复(一下|)你的(回答|上一句|话)。", "你(刚刚|上一句|上次)说(的是|了)什么？", "把你的回答再说一遍。", "你(的回答|说的)是什么？", "!你说了什么？"])

# Other ways to put a question: a pattern, and what it may become.
WAYS_EN = [
    (r"How (?:do|can) I (.+)\?", [r"How (can|do|could|should|must) I \1?", r"(I want to|I would like to|I need to) \1(.|, how?|. What do I do?)", r"(Tell me|Explain|Show me|Can you explain|I want to know) how (to|I) \1.", r"What (must|do|can) I do to \1?", r"Is there a way to \1?"]),
    (r"(?:What|Which) (?!is |are |do |does |can |happens )(.+)\?", [r"(What|Which) \1?", r"(Tell me|I want to know) (what|which) \1.", r"(Please|Can you|Could you) tell me (what|which) \1?"]),
    (r"What is (.+)\?", [r"(Explain|Describe) \1.", r"Can you (explain|describe|tell me about) \1?", r"What (does|do) \1 mean?", r"What's \1?", r"I do not know what \1 is."]),
    (r"(?:What|Which) is the (.+)\?", [r"(Which|What) is the \1?", r"(Tell|Give) me the \1.", r"Which one is the \1?", r"The \1, please."]),
    (r"Can (?:I|it|you) (.+)\?", [r"Is it possible to \1?", r"(Could|Can) (I|one|somebody) \1?", r"I (want|would like) to \1."]),
    (r"(?:Does|Do) (?:Tokenmill|it|you) (.+)\?", [r"(Can|Does|Will) (Tokenmill|the server|it) \1?", r"Tell me if (Tokenmill|it) can \1."]),
    (r"(?:Is|Are) (.+)\?", [r"Tell me if \1.", r"I want to know: is \1?"]),
]
WAYS_ZH = [
    (r"(?:怎么|如何|怎样)(设置|修改|改|换|选择|限制|使用|启动|停止|监控|检查|读取|发送|打开|量化|运行|查看)(.+?)？", [r"\2(怎么|如何|怎样)\1？", r"(怎么|如何|怎样|怎么样)\1\2？", r"(我想|我要|想)\1\2。", r"(请|)告诉我(怎么|如何|怎样)\1\2。"]),
    (r"(?:怎么|如何|怎样)(.+)？", [r"(怎么|如何|怎样)\1？", r"(我想|我要)\1。", r"(请|)告诉我(怎么|如何|怎样)\1。", r"(可以|能)\1吗？"]),
    (r"(?:什么是 ?)(.+)？", [r"\1是什么(意思|)？", r"(解释|介绍)(一下|)\1。", r"\1(的意思是什么|指的是什么)？"]),
    (r"(.+?) ?是什么？", [r"什么是\1？", r"\1是什么(意思|)？", r"(解释|介绍|说)(一下|)\1。", r"请问\1(是什么|)？"]),
    (r"(?:哪个|什么)(.+)？", [r"(哪个|什么|哪一个)\1？", r"(请|)告诉我(哪个|什么)\1。"]),
    (r"(.+)(?:哪个|什么)(.+)？", [r"\1(哪个|什么|哪种|哪些)\2？"]),
    (r"(.+)(?:吗)？", [r"是不是\1？", r"(请问|我想知道)\1吗？"]),
]

# key: (list or maker, statements en, ack en, questions en, answer en, statements zh, ack zh, questions zh, answer zh)
ATTRS = {
    "name": (["My name is {v}.", "I am {v}.", "(I'm|Call me|You can call me|Please call me) {v}.", "(Hi|Hello|Hey), (my name is|I am|I'm) {v}.", "I am called {v}.", "My name's {v}.", "Actually, my name is {v}.", "!The name is {v}."],
             "Nice to meet you, {v}.", ["What is my name?", "What's my name?", "Who am I?", "Do you (know|remember) my name?", "(Tell me|Say) my name.", "What am I called?", "Can you remember my name?", "How do (people|you) call me?", "Please (say|repeat) my name.", "My name is what?", "(Please tell me|Tell me) who I am.", "!How am I called?", "!Please tell me my name."], "Your name is {v}.",
             ["我(叫|是){v}。", "我的名字(是|叫){v}。", "(你好，|嗨，)我(叫|是){v}。", "(你可以|请)叫我{v}。", "!我的名字：{v}。"], "很高兴认识你，{v}。", ["我叫什么(名字|)？", "我的名字(是什么|叫什么)？", "我是谁？", "你(知道|记得)我(叫什么|的名字)吗？", "(请|)说(一下|)我的名字。", "请说出我是谁。", "!请说出我的名字。"], "你叫{v}。"),
    "colour": (["My favou?rite colou?r is {v}.", "I (like|love) the colou?r {v}( best| most|).", "The colou?r I like best is {v}.", "!My best-loved colour is {v}."], "{v} is a nice colour. I will remember it.",
               ["What is my favou?rite colou?r?", "(Which|What) colou?r do I (like|love)( best| most|)?", "Do you (know|remember) my favou?rite colou?r?", "(Tell me|Say) (the colou?r I like best|which colou?r I like).", "My favou?rite colou?r is what?", "!Tell me my favourite colour."], "Your favourite colour is {v}.",
               ["我(最喜欢|喜欢)的颜色是{v}。", "我(最|)喜欢{v}这个颜色。", "!我最爱的颜色是{v}。"], "好的，我记住了：{v}。", ["我(最喜欢|喜欢)(什么颜色|的颜色是什么)？", "你记得我(最|)喜欢的颜色吗？", "我(最爱|爱)的颜色是什么？", "我最喜欢哪个颜色？", "!我最爱什么颜色？"], "你最喜欢的颜色是{v}。"),
    "city": (["I live in {v}.", "I am from {v}.", "My (city|home|home town) is {v}.", "I come from {v}.", "!I am at home in {v}."], "{v} sounds nice. I will remember it.",
             ["Where do I live?", "Where am I from?", "(Which|What) (city|town) (do I live in|am I from|is my home)?", "In (which|what) city do I live?", "What is my city?", "Do you (know|remember) where I live?", "Where (is my city|am I at home)?", "(Tell me|Say) (where I live|my city).", "Which town is my home?", "My home is where?", "!Where is my home?"], "You live in {v}.",
             ["我住在{v}。", "我(来自|的家在|的城市是){v}。", "!我家在{v}。"], "{v}很好，我记住了。", ["我住在哪里？", "我住在(哪个|什么)城市？", "我(来自哪里|的家在哪里|的城市是哪个)？", "我家在哪个城市？", "我的家在什么地方？", "!我家在哪里？"], "你住在{v}。"),
    "pet": (["I have a {k} (called|named) {v}.", "My {k} is (called|named) {v}.", "My {k}'s name is {v}.", "The name of my {k} is {v}.", "!I own a {k}, {v}."], "{v} is a lovely name for a {k}.",
            ["What is my {k} called?", "What is the name of my {k}?", "What's my {k}'s name?", "Do you (know|remember) the name of my {k}?", "What is my {k}'s name?", "How do I call my {k}?", "How is (the|this) {k} called?", "(Tell me|Say) the name of my {k}.", "My {k} is called what?", "!How is my {k} called?"], "Your {k} is called {v}.",
            ["我有一只{k}叫{v}。", "我的{k}(叫|名字是){v}。", "!我养了一只{k}，叫{v}。"], "{v}是个好名字。", ["我的{k}叫什么(名字|)？", "我的{k}的名字是什么？", "我的{k}名字叫什么？", "你记得我的{k}的名字吗？", "{k}名叫什么？", "!我的{k}名叫什么？"], "你的{k}叫{v}。"),
    "job": (["I (am|work as) a {v}.", "My job is {v}.", "I have a job as a {v}.", "!My profession is {v}."], "{v} is an interesting job.",
            ["What is my job?", "What do I do( for a living|)?", "What do I work as?", "Do you (know|remember) my (job|profession)?", "(Tell me|Say) my (job|profession).", "Which (job|profession) do I have?", "My profession is what?", "!What is my profession?"], "Your job is {v}.",
            ["我(的工作|的职业)是{v}。", "我是一名{v}。", "!我做{v}的工作。"], "{v}是很有意思的工作。", ["我(的工作|的职业)是什么？", "我是做什么(工作|)的？", "我从事什么(职业|)？", "我做什么工作？", "你记得我的(工作|职业)吗？", "!我从事什么工作？"], "你的工作是{v}。"),
    "food": (["My favou?rite food is {v}.", "I (like|love) to eat {v}.", "The food I like best is {v}.", "!I like eating {v} most."], "{v} is tasty. I will remember it.",
             ["What is my favou?rite food?", "What do I (like|love) to eat?", "(Which|What) food do I like( best|)?", "(Which|What) is my favou?rite (food|meal)?", "(Tell me|Say) my favou?rite food.", "Which of the foods is my favou?rite?", "!What food is my favourite?"], "Your favourite food is {v}.",
             ["我(最喜欢|喜欢)吃{v}。", "我最喜欢的食物是{v}。", "!我最爱吃{v}。"], "{v}很好吃，我记住了。", ["我(最|)喜欢吃什么？", "我最喜欢的食物是什么？", "我爱吃什么？", "我最爱的食物是什么？", "!我最爱吃什么？"], "你最喜欢吃{v}。"),
    "hobby": (["My hobby is {v}.", "I (like|love|enjoy) {v}.", "In my free time I like {v}.", "!My favourite hobby is {v}."], "{v} is a nice hobby.",
              ["What is my hobby?", "What do I (like|enjoy) (doing|in my free time)?", "Do you (know|remember) my hobby?", "(Tell me|Say) my hobby.", "What hobby do I (have|like)?", "Which is my hobby?", "!Which hobby do I have?"], "Your hobby is {v}.",
              ["我的爱好是{v}。", "我(喜欢|爱){v}。", "!我平时的爱好是{v}。"], "{v}是个好爱好。", ["我的爱好是什么？", "我(喜欢|爱)做什么？", "我有(哪个|哪些)爱好？", "你记得我的爱好吗？", "!我有什么爱好？"], "你的爱好是{v}。"),
    "number": (["My (lucky|favou?rite) number is {v}.", "My number is {v}.", "Remember the number {v}.", "The number is {v}.", "!Keep the number {v} in mind."], "I will remember the number {v}.",
               ["What is my (lucky |favou?rite |)number?", "(Which|What) number did I (tell you|say|give you)?", "What (was|is) the number?", "Do you (know|remember) (my|the) number?", "(Say|Repeat) (my|the) number.", "Tell me my (lucky |)number.", "!Tell me the number."], "The number is {v}.",
               ["我的(幸运|)(数字|号码)是{v}。", "(请|)记住(数字|号码|){v}。", "!请你记住这个数字：{v}。"], "我记住了数字{v}。", ["我的(幸运|)(数字|号码)是(什么|多少)？", "数字是(什么|多少)？", "我让你记住的(数字|号码)是(什么|多少)？", "我说的(数字|号码)是(什么|多少)？", "是哪个(数字|号码)？", "!我说的是哪个数字？"], "数字是{v}。"),
    "age": (["I am {v} years old.", "My age is {v}.", "I (just |)turned {v}.", "!I am now aged {v}."], "{v} is a good age.", ["How old am I?", "What is my age?", "Do you (know|remember) (my age|how old I am)?", "Tell me (my age|how old I am).", "Say how old I am.", "My age?", "!Say my age."], "You are {v} years old.",
            ["我{v}岁(了|)。", "我今年{v}岁。", "!我已经{v}岁了。"], "{v}岁，我记住了。", ["我(今年|)(几岁|多大)(了|)？", "我的年龄是多少？", "我有几岁？", "我多少岁(了|)？", "你记得我的年龄吗？", "!我有多少岁？"], "你{v}岁。"),
    "code": (["The (password|code|secret|key) is {v}.", "The {k} is {v}.", "Remember(:| that) the {k} is {v}.", "My {k} is {v}.", "Please remember: the {k} is {v}.", "!Note that the {k} is {v}."], "I will remember that the {k} is {v}.",
             ["What is (the|my) {k}?", "What was (the|my) {k}?", "(Tell me|Say|Give me) (the|my) {k}.", "Do you (know|remember) (the|my) {k}?", "What is the {k} again?", "(Name|Repeat) (the|my) {k}.", "Please (tell me|say|repeat) (the|my) {k}.", "Please name my {k}.", "(The|My) {k}?", "!Please name the {k}."], "The {k} is {v}.",
             ["{k}是{v}。", "(请|)记住，{k}是{v}。", "我的{k}是{v}。", "!要记住{k}是{v}。"], "我记住了，{k}是{v}。", ["{k}是什么？", "我的{k}是什么？", "(请|)告诉我{k}。", "你记得{k}吗？", "(请|)说(一下|)我的{k}。", "请说出我的{k}。", "{k}呢？", "!请说出{k}。"], "{k}是{v}。"),
}
NOT_TOLD = ("You have not told me that yet.", "你还没有告诉我。")
CODE_KEYS = ("password|code|secret|code word|secret word|magic word|room number|team name|project name|meeting place|file name|ticket|address|server name|topic|title|book title|key word|order number|car|street|school|company|boss|brother|sister|best friend|teacher|favourite book|favourite animal|favourite song|plan|date".split("|"),
             "密码|代码|暗号|秘密|房间号|队名|项目名|地点|文件名|票号|地址|题目|书名|关键词|订单号|街道|学校|公司|朋友|老师|最喜欢的书|最喜欢的动物|计划|日期".split("|"))

TOOLS = [  # name, description en/zh, [(param, type, maker)], requests en, zh
    ("get_weather", "Get the weather of a city.", "查询城市的天气。", [("city", "string", "city")], ["What is the weather (like |)in {city}?", "How is the weather in {city}?", "Weather in {city}(?|, please.)", "Is it raining in {city}?", "!Tell me the weather in {city}."], ["{city}(的|)天气(怎么样|如何)？", "查(一下|){city}的天气。", "!{city}今天天气好吗？"]),
    ("get_time", "Get the local time of a city.", "查询城市的时间。", [("city", "string", "city")], ["What time is it in {city}?", "(Tell me the|What is the) time in {city}(.|?)", "!Do you know the time in {city}?"], ["{city}现在几点？", "{city}的时间是(什么|多少)？", "!查一下{city}的时间。"]),
    ("add", "Add two numbers.", "两个数相加。", [("a", "integer", "big"), ("b", "integer", "big")], ["Add {a} and {b}.", "What is {a} plus {b}?", "What is {a} + {b}?", "!Give me the sum of {a} and {b}."], ["{a}加{b}等于多少？", "{a} + {b} = ？", "!把{a}和{b}相加。"]),
    ("multiply", "Multiply two numbers.", "两个数相乘。", [("a", "integer", "big"), ("b", "integer", "big")], ["Multiply {a} (by|and) {b}.", "What is {a} times {b}?", "!Give me the product of {a} and {b}."], ["{a}乘以{b}等于多少？", "!把{a}和{b}相乘。"]),
    ("search", "Search the web.", "搜索网页。", [("query", "string", "phrase")], ["Search (for|the web for) {query}.", "(Look up|Find|Google) {query}.", "!Please search {query}."], ["搜索(一下|){query}。", "(查找|找){query}。", "!请搜索{query}。"]),
    ("send_email", "Send an email.", "发送邮件。", [("to", "string", "name"), ("subject", "string", "phrase")], ["Send an email to {to} (about|with the subject) {subject}.", "(Email|Write an email to|Mail) {to} about {subject}.", "!Please mail {to} on {subject}."], ["给{to}发(一封|)邮件，主题是{subject}。", "!发邮件给{to}，主题{subject}。"]),
    ("set_alarm", "Set an alarm.", "设置闹钟。", [("time", "string", "clock")], ["Set an alarm (for|at) {time}.", "Wake me (up |)at {time}.", "!I need an alarm at {time}."], ["(设置|设一个){time}的闹钟。", "{time}叫醒我。", "!我要{time}的闹钟。"]),
    ("play_music", "Play a song.", "播放歌曲。", [("song", "string", "phrase")], ["Play (the song |){song}.", "I want to hear {song}.", "!Put on {song}."], ["播放(歌曲|){song}。", "我想听{song}。", "!放一下{song}。"]),
    ("book_table", "Book a table in a restaurant.", "预订餐桌。", [("name", "string", "name"), ("people", "integer", "small")], ["Book a table for {people} (under|in) the name {name}.", "Reserve a table for {people}, name {name}.", "!A table for {people}, please, for {name}."], ["用{name}的名字订{people}个人的桌子。", "!订桌，{people}人，{name}。"]),
    ("translate", "Translate a text.", "翻译文本。", [("text", "string", "phrase"), ("language", "string", "lang")], ["Translate {text} (into|to) {language}.", "How do you say {text} in {language}?", "!Give me {text} in {language}."], ["把{text}翻译成{language}。", "!{text}用{language}怎么说？"]),
    ("find_user", "Find a user by name.", "按名字查找用户。", [("name", "string", "name")], ["(Find|Look up|Search) the user {name}.", "Who is the user {name}?", "!Show me the user {name}."], ["查找用户{name}。", "!用户{name}是谁？"]),
    ("turn_on", "Turn on a device.", "打开设备。", [("device", "string", "noun")], ["(Turn|Switch) on the {device}.", "Turn the {device} on.", "!Please switch the {device} on."], ["打开{device}。", "!请打开{device}。"]),
    ("get_price", "Get the price of a product.", "查询商品价格。", [("product", "string", "noun")], ["(How much is|What is the price of|What does it cost to buy) (a|the) {product}?", "How much does (a|the) {product} cost?", "!Price of the {product}?"], ["{product}多少钱？", "{product}的价格是多少？", "!查{product}的价格。"]),
]
COMMON_HAN = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从知全点实者最已或外使问很四月两本回让先种叫向理体什高己西力女东水气老少头给手长五正美话北六口被七八九开原安真南打光明今早文海路门山红白书走风信声飞马花春夏秋冬雨雪电车金木火土石"


def bucket(word):
    """0..9 by the word itself, so that the split needs no list."""
    return zlib.crc32(word.encode()) % 10


class Generator:
    """One stream of conversations."""

    def __init__(self, seed, held=False):
        self.rng = random.Random(seed)
        self.held = held
        self.split = {}
        self.start("en")

    # -- drawing -------------------------------------------------------------
    def start(self, lang):
        self.zh = int(lang == "zh")
        self.msgs, self.told, self.tools = [], {}, None

    def pick(self, items):
        """One item of the split in use (all of a list that is too short to split)."""
        key = (id(items), self.held)
        if key not in self.split:
            own = [i for i in items if (bucket(str(i)) == 0) == self.held]
            self.split[key] = (items, own or list(items))
        return self.rng.choice(self.split[key][1])

    def expand(self, text):
        while True:
            m = GROUP.search(text)
            if not m:
                break
            text = text[:m.start()] + self.rng.choice(m.group(1).split("|")) + text[m.end():]
        return text.replace("ou?r", self.rng.choice(["our", "or"]))

    def ask(self, templates, **slots):
        """A question from templates, in varied spelling, with its slots filled."""
        t = self.rng.choice([q for q in templates if q.startswith("!") == self.held] or [q.lstrip("!") for q in templates])
        t = self.expand(t.lstrip("!"))
        r = self.rng.random()
        if r < 0.08:
            t = t[0].lower() + t[1:]
        elif r < 0.14 and not slots:
            t = t.lower()
        if self.rng.random() < 0.12:
            t = t.rstrip("?.!？。！")
        elif self.rng.random() < 0.06 and not self.zh:
            t = self.rng.choice(["Please, ", "Hey, ", "Ok. ", "So, ", "And "]) + t[0].lower() + t[1:]
        for k, v in slots.items():
            t = t.replace("{" + k + "}", str(v))
        return t

    def pseudo(self):
        """A made-up word of the split in use."""
        while True:
            w = "".join(self.rng.choice("b c d f g h j k l m n p r s t v w z br tr st ch sh gl pl kr".split()) + self.rng.choice("a e i o u ai ou ee".split()) for _ in range(self.rng.randint(1, 3)))
            w += self.rng.choice(["", "n", "r", "l", "x", "m", "s", "t"])
            if (bucket(w) == 0) == self.held:
                return w

    def name(self):
        if self.zh:
            return self.pick(W.NAMES_ZH) if self.rng.random() < 0.75 else self.pick(W.NAMES_EN)
        return self.pick(W.NAMES_EN) if self.rng.random() < 0.65 else self.pseudo().capitalize()

    def noun(self):
        return self.pick(W.NOUNS_ZH if self.zh else W.NOUNS_EN)

    def digits(self, lo, hi):
        return "".join(self.rng.choice("0123456789") for _ in range(self.rng.randint(lo, hi)))

    def alnum(self, lo, hi):
        chars = self.rng.choice(["abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz0123456789", "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "0123456789abcdef"])
        return "".join(self.rng.choice(chars) for _ in range(self.rng.randint(lo, hi)))

    def han(self, lo, hi):
        """Chinese characters: mostly common ones, at times any at all."""
        wide = self.rng.random() < 0.25
        return "".join(chr(self.rng.randint(0x4E00, 0x9FA5)) if wide and self.rng.random() < 0.5 else self.rng.choice(COMMON_HAN) for _ in range(self.rng.randint(lo, hi)))

    def word(self):
        r = self.rng.random()
        if r < 0.5:
            return self.noun()
        if r < 0.6:
            return self.pick(W.ADJ_ZH if self.zh else W.ADJ_EN)
        if r < 0.68:
            return self.pick(W.VERBS_EN)
        if r < 0.86:
            return self.pseudo()
        if r < 0.93:
            return self.name()
        return self.digits(1, 5)

    def sentence(self):
        c, n = self.rng.choice, self.noun
        if self.zh:
            return c(["{a}在{b}里看{c}。", "今天{a}和{b}去了{c}。", "{a}喜欢{b}，不喜欢{c}。", "我把{b}放在{c}上面。", "那只{a}比{b}大。", "如果下雨，{a}就不去{c}。"]).format(a=self.name(), b=n(), c=n())
        return c(["The {x} {a} is in the {b}.", "{p} put the {a} on the {b}.", "I saw a {x} {a} near the {b}.", "{p} likes the {a}, but not the {b}.", "Every {a} needs a {x} {b}.", "Yesterday {p} went to the {b} with a {a}.", "The {a} and the {b} are {x}."]).format(
            x=self.pick(W.ADJ_EN), a=n(), b=n(), p=self.name())

    def text(self, most=12):
        """Something to repeat: from one word to about forty tokens."""
        r, rng = self.rng.random(), self.rng
        sep = rng.choice([" ", ", ", " "]) if not self.zh else rng.choice(["", "，", " ", "、"])
        if r < 0.30:
            return sep.join(self.word() for _ in range(rng.randint(1, most)))
        if r < 0.48:
            return " ".join(self.sentence() for _ in range(1 if rng.random() < 0.75 else 2))
        if r < 0.58:
            return self.alnum(3, min(20, 2 * most))
        if r < 0.66:
            return self.digits(2, min(20, 2 * most))
        if r < 0.72:
            return " ".join(self.digits(1, 4) for _ in range(rng.randint(2, 8)))
        if r < 0.80 or (self.zh and r < 0.88):
            return self.han(2, 14)
        if r < 0.84:
            return " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 12)))
        if r < 0.90:
            return " ".join(self.alnum(2, 6) for _ in range(rng.randint(2, 5)))
        if r < 0.93:
            return f"{self.pseudo()}@{self.pseudo()}.{rng.choice(['com', 'org', 'net'])}"
        if r < 0.96:
            return f"{self.pseudo()}({self.pseudo()}, {self.digits(1, 3)}) {rng.choice(['+', '-', '==', '=>', '/'])} {self.pseudo()}[{self.digits(1, 2)}];"
        return rng.choice(FACTS)[4 if self.zh else 2]

    # -- building ------------------------------------------------------------
    def turn(self, user, answer, kind, must=None):
        """must: strings a right answer holds; None: exactly this answer."""
        self.msgs.append({"role": "user", "content": user})
        self.msgs.append({"role": "assistant", "content": answer, "kind": kind, "must": must})

    def users(self):
        return [m["content"] for m in self.msgs if m["role"] == "user"]

    def smalltalk(self):
        k = self.rng.choice(list(TEMPLATES))
        must = {"hello": ("Hello", "你好"), "thanks": ("welcome", "不客气"), "bye": ("Goodbye", "再见"), "who": ("Tokenmill", "Tokenmill")}.get(k)
        self.turn(self.ask(TEMPLATES[k][self.zh]), ANSWERS[k][self.zh], "smalltalk", [must[self.zh]] if must else None)

    def other_words(self, q, templates):
        """The same question put another way, unless that is one of the questions held out."""
        ways = [(way, out) for way, out in (WAYS_ZH if self.zh else WAYS_EN) if re.fullmatch(way, q)]
        if not ways:
            return q
        way, outs = self.rng.choice(ways)
        new = re.sub(way, self.expand(self.rng.choice(outs)), q)
        plain = lambda text: re.sub(r"\W", "", text.lower())
        held = {plain(t) for t in templates if t.startswith("!")}
        return q if plain(new) in held else new

    def fact(self, f=None):
        f = f or self.rng.choice(FACTS)
        q = self.ask(f[3 if self.zh else 1])
        if not self.held and self.rng.random() < 0.5:
            q = self.other_words(q, f[3 if self.zh else 1])
        r = self.rng.random()
        if not self.held and r < 0.15:
            q = self.rng.choice(["请问，", "你好，", "问题：", "我想知道，"] if self.zh else ["Hi! ", "Question: ", "Hello, ", "I have a question. ", "About Tokenmill: ", "Tell me: "]) + q
        self.turn(q, f[4 if self.zh else 2], "tokenmill", list(f[5]) or None)

    def unknown(self):
        q = self.ask(UNKNOWN_Q[self.zh], t=self.pick(W.UNKNOWN_ZH if self.zh else W.UNKNOWN_EN) if self.rng.random() < 0.7 else (self.noun() if self.zh else self.rng.choice(["the ", ""]) + self.pick(W.ADJ_EN) + " " + self.noun()), w=self.word())
        self.turn(q, UNKNOWN[self.zh], "unknown", [("不知道" if self.zh else "do not know")])

    def world(self):
        if self.rng.random() < 0.5:
            c = self.rng.choice(W.CAPITALS)
            if self.zh:
                self.turn(self.ask(["{c}的首都是(哪里|什么|哪个城市)？", "(哪个城市|哪里)是{c}的首都？"], c=c[2]), f"{c[2]}的首都是{c[3]}。", "world")
            else:
                self.turn(self.ask(["(What|Which city) is the capital of {c}?", "(Tell me the|Name the) capital of {c}.", "What's the capital of {c}?"], c=c[0]), f"The capital of {c[0]} is {c[1]}.", "world")
        else:
            en, zh = self.rng.choice(W.DICT)
            if self.rng.random() < 0.5:
                q = self.ask(["“?{w}(用中文怎么说|的中文是什么)？", "把 {w} 翻译成中文。"], w=en).replace("“?", "") if self.zh else self.ask(["(Translate {w} (in|)to Chinese.|What is {w} in Chinese?|How do you say {w} in Chinese?)"], w=en)
                self.turn(q, zh, "world")
            else:
                q = self.ask(["{w}(用英文怎么说|的英文是什么|用英语怎么说)？", "把{w}翻译成英文。"], w=zh) if self.zh else self.ask(["(Translate {w} (in|)to English.|What is {w} in English?|What does {w} mean?)"], w=zh)
                self.turn(q, en, "world")

    def repeat(self):
        x = self.text(self.rng.choice([3, 8, 12]))
        self.turn(self.ask(REPEAT[self.zh], x="\0").replace("\0", x), x, "repeat")

    def noise(self):
        """A message without a question, there to be repeated later."""
        self.turn(self.text(self.rng.choice([3, 8, 12])), NOISE[self.zh], "noise")

    def repeat_last(self):
        if not self.msgs or self.rng.random() < 0.5:
            self.noise()
        last = self.users()[-1]
        if len(last) > 200 or self.msgs[-2]["role"] != "user" or not self.msgs[-1]["content"]:
            return
        self.turn(self.ask(LAST[self.zh]), ("你说：" if self.zh else "You said: ") + last, "repeat_last", [last])

    def repeat_first(self):
        if not self.msgs:
            self.noise()
            self.filler(self.rng.randint(0, 3))
        first = self.users()[0]
        if len(first) > 160:
            return
        self.turn(self.ask(FIRST[self.zh]), ("你的第一条消息是：" if self.zh else "Your first message was: ") + first, "repeat_first", [first])

    def repeat_own(self):
        if not self.msgs or self.msgs[-1]["role"] != "assistant" or len(self.msgs[-1]["content"]) > 200 or "tool_call" in self.msgs[-1]:
            return
        self.turn(self.ask(YOURS[self.zh]), self.msgs[-1]["content"], "repeat_own")

    def value(self, kind):
        z = self.zh
        if kind == "name":
            return None, self.name()
        if kind == "colour":
            return None, self.rng.choice(W.COLOURS)[z]
        if kind == "pet":
            r = self.rng.random()
            return self.rng.choice(W.PETS_ZH if z else W.PETS_EN), self.pick(W.PET_NAMES_ZH if z else W.PET_NAMES) if r < 0.5 else (self.name() if r < 0.7 else self.pseudo().capitalize())
        if kind == "code":
            r = self.rng.random()
            v = self.noun() if r < 0.25 else self.pseudo() if r < 0.45 else self.alnum(4, 10) if r < 0.6 else self.digits(3, 6) if r < 0.75 else self.name() if r < 0.85 else self.noun() + ("" if z else " ") + self.noun()
            return self.rng.choice(CODE_KEYS[z]), v
        if kind == "number":
            return None, self.digits(1, 6)
        if kind == "age":
            return None, str(self.rng.randint(5, 99))
        pools = {"city": (W.CITIES_EN, W.CITIES_ZH), "job": (W.JOBS_EN, W.JOBS_ZH), "food": (W.FOODS_EN, W.FOODS_ZH), "hobby": (W.HOBBIES_EN, W.HOBBIES_ZH)}
        if kind in ("city", "food", "hobby") and self.rng.random() < 0.25:
            return None, self.pseudo().capitalize() if kind == "city" else self.noun()
        return None, self.pick(pools[kind][z])

    def tell(self, kind=None):
        kind = kind or self.rng.choice(list(ATTRS) + ["name", "code", "name"])
        k, v = self.value(kind)
        a = ATTRS[kind]
        st, ack = (a[4], a[5]) if self.zh else (a[0], a[1])
        user = self.ask(st, v="\0", k=k or "")
        if kind == "code" and k not in user:
            k = next((w for w in ("password", "code", "secret", "key") if f"The {w} is" in user or f"the {w} is" in user), k)
        user = user.replace("\0", v)
        ans = ack.replace("{v}", v).replace("{k}", k or "")
        self.turn(user, ans[0].upper() + ans[1:] if ack.startswith("{v}") and not self.zh else ans, "tell", [v])
        self.told.pop((kind, k), None)
        self.told[(kind, k)] = v
        return kind, k

    def tell_two(self):
        """Two facts in one sentence."""
        a, b = self.rng.sample(["name", "city", "job", "hobby", "age", "colour", "food"], 2)
        if self.rng.random() < 0.6:
            a, b = ("name", b) if b != "name" else ("name", a)
        say = {"name": ("my name is {}", "我叫{}"), "city": ("I live in {}", "我住在{}"), "job": ("I am a {}", "我是一名{}"), "hobby": ("my hobby is {}", "我的爱好是{}"), "age": ("I am {} years old", "我今年{}岁"), "colour": ("my favourite colour is {}", "我最喜欢的颜色是{}"), "food": ("I like to eat {}", "我喜欢吃{}")}
        va, vb = self.value(a)[1], self.value(b)[1]
        s = say[a][self.zh].format(va) + ("，" if self.zh else self.rng.choice([" and ", ", and ", ". "])) + say[b][self.zh].format(vb)
        s = re.sub(r"(^|\. )([a-z])", lambda m: m.group(1) + m.group(2).upper(), s) + ("。" if self.zh else ".")
        self.turn(s, "好的，我记住了。" if self.zh else "Good to know. I will remember that.", "tell")
        for key, v in ((a, va), (b, vb)):
            self.told.pop((key, None), None)
            self.told[(key, None)] = v

    def recall(self, which=None):
        """Asks for something told before, or, at times, for something never told."""
        if which is None and (not self.told or self.rng.random() < 0.08):
            kind = self.rng.choice([k for k in ATTRS if not any(t[0] == k for t in self.told)] or ["code"])
            k = self.value(kind)[0]
            if (kind, k) in self.told:
                return
            a = ATTRS[kind]
            self.turn(self.ask(a[6] if self.zh else a[2], k=k or ""), NOT_TOLD[self.zh], "not_told", [("没有告诉" if self.zh else "not told")])
            return
        kind, k = which or self.rng.choice(list(self.told))
        a, v = ATTRS[kind], self.told[(kind, k)]
        self.turn(self.ask(a[6] if self.zh else a[2], k=k or ""), (a[7] if self.zh else a[3]).replace("{v}", v).replace("{k}", k or ""), "recall", [v])

    def lookup(self):
        """Several pairs in one message, one of them asked for: plain associative recall."""
        n, rng = self.rng.randint(2, 6), self.rng
        keys, maker = [], rng.choice([self.noun, self.name, self.pseudo, lambda: self.alnum(2, 4)])
        while len(keys) < n:
            k = maker()
            if all(k not in o and o not in k for o in keys):
                keys.append(k)
        vals = [rng.choice([self.noun, lambda: self.digits(1, 4), self.pseudo, self.name])() for _ in keys]
        i = rng.randrange(n)
        style = rng.randrange(3)
        if self.zh:
            form, q = [("{}是{}", "{}是什么？"), ("{} = {}", "{} = ？"), ("{}有{}", "{}有什么？")][style]
            body, ans = "，".join(form.format(a, b) for a, b in zip(keys, vals)) + "。", (f"{keys[i]}有{vals[i]}。" if style == 2 else f"{keys[i]}是{vals[i]}。")
        else:
            form, q = [("{} is {}", "What is {}?"), ("{} = {}", "What is {}?"), ("{} has {}", "What does {} have?")][style]
            body, ans = ", ".join(form.format(a, b) for a, b in zip(keys, vals)) + ".", (f"{keys[i]} has {vals[i]}." if style == 2 else f"{keys[i]} is {vals[i]}.")
        q = q.format(keys[i])
        if rng.random() < 0.5:
            self.turn(body + ("" if self.zh else " ") + q, ans, "lookup", [vals[i]])
        else:
            self.turn(body, "好的，我记住了。" if self.zh else "Good to know. I will remember that.", "tell")
            self.turn(q, ans, "lookup", [vals[i]])

    def arithmetic(self):
        rng = self.rng
        while True:
            op = rng.choice("++--*")
            a, b = rng.randint(0, 99), rng.randint(0, 99 if op != "*" else 9)
            if rng.random() < 0.3:
                a, b = rng.randint(0, 20), rng.randint(0, 9)
            if op == "-" and a < b and rng.random() < 0.85:
                a, b = b, a
            if (bucket(f"{a}{op}{b}") == 0) == self.held:
                break
        c = a + b if op == "+" else a - b if op == "-" else a * b
        sign = {"+": "+", "-": "-", "*": "×"}[op]
        said = {"+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘以")}[op][self.zh]
        shown = rng.choice([sign, sign, "*" if op == "*" else sign, "x" if op == "*" else sign])
        e = rng.choice([f"{a} {shown} {b}", f"{a}{shown}{b}", f"{a} {shown} {b}", f"{a} {said} {b}" if not self.zh else f"{a}{said}{b}"])
        q = self.ask(["{e}(等于多少|是多少|等于几)？", "(计算|算一下|请计算)：{e}", "{e} = ？", "{e}", "!请算：{e}"] if self.zh else ["What is {e}?", "(Calculate|Compute|Work out|Solve)(:|) {e}", "{e}", "{e} = ?", "How much is {e}?", "What's {e}?", "{e} =", "!Please calculate {e}."], e=e)
        self.turn(q, f"{a} {sign} {b} = {c}", "arithmetic", [f"= {c}"])

    def count(self, most=30):
        rng = self.rng
        r = rng.random()
        if r < 0.6:
            n = rng.randint(2, most)
            q = self.ask(["(从 1 |从1|)数到 ?{n}。", "(请|)数到{n}。", "写出 1 到 {n} 的数字。", "!请从 1 数到 {n}。"] if self.zh else ["Count (up |from 1 |from one |)to {n}.", "(Please count|Can you count) to {n}(.|?)", "(List|Write|Give me) the numbers (from |)1 to {n}.", "!Say the numbers up to {n}."], n=n).replace(" ?", "")
            seq = range(1, n + 1)
        elif r < 0.85:
            a = rng.randint(1, 80)
            b = a + rng.randint(2, 15)
            q = self.ask(["从{a}数到{b}。", "(请|)写出{a}到{b}的数字。", "!请从{a}数到{b}。"] if self.zh else ["Count from {a} to {b}.", "(List|Write) the numbers from {a} to {b}.", "!Say the numbers from {a} up to {b}."], a=a, b=b)
            seq = range(a, b + 1)
        else:
            a = rng.randint(3, 20)
            q = self.ask(["从{a}倒数到 1。", "从{a}(倒着数|倒数)。", "!请从{a}开始倒数。"] if self.zh else ["Count (down|backwards) from {a}(| to 1).", "!Count back from {a}."], a=a)
            seq = range(a, 0, -1)
        self.turn(q, ", ".join(map(str, seq)), "count")

    def lists(self):
        z, rng = self.zh, self.rng
        r = rng.random()
        sep = "、" if z else ", "
        if r < 0.35:
            l = rng.choice(W.LISTS)
            t = self.expand(l[1]) if z else l[0]
            q = self.ask(["(列出|说出|写出){t}。", "{t}有哪些？", "(请|)告诉我{t}。", "!请列出{t}。"] if z else ["(List|Name|Tell me|Say|Give me) the {t}.", "What are the {t}?", "Which {t} are there?", "(Write|Show) (me |)the {t}.", "!Can you list the {t}?"], t=t)
            self.turn(q, sep.join(l[3] if z else l[2]), "lists")
        elif r < 0.7:
            l = rng.choice(W.OPEN_LISTS)
            n = rng.randint(2, 10)
            num = n if rng.random() < 0.6 else ("零一二三四五六七八九十"[n] if z else "zero one two three four five six seven eight nine ten".split()[n])
            q = self.ask(["(列出|说出|写出|给我){n}(个|种){t}。", "!请说{n}个{t}。"] if z else ["(List|Name|Tell me|Give me|Say|Write) {n} {t}.", "!Can you name {n} {t}?"], n=num, t=l[1] if z else l[0])
            self.turn(q, sep.join((l[3] if z else l[2])[:n]), "lists")
        else:
            l = rng.choice(W.LISTS[:5])
            i = rng.randrange(1, len(l[2]) - 1)
            seq = l[3] if z else l[2]
            after = rng.random() < 0.6
            q = self.ask(["{w}(后面|之后)是什么？"] if z else ["(What|Which one) comes (after|next after) {w}?", "What follows {w}?"], w=seq[i]) if after else self.ask(["{w}(前面|之前)是什么？"] if z else ["(What|Which one) comes before {w}?"], w=seq[i])
            self.turn(q, seq[i + 1] if after else seq[i - 1], "lists")

    def sort(self):
        z, rng = self.zh, self.rng
        n = rng.randint(2, 6)
        r = rng.random()
        if r < 0.45:
            xs = [str(x) for x in rng.sample(range(1, rng.choice([10, 30, 100])), n)]
            ys = sorted(xs, key=int)
            q = self.ask(["(排序|从小到大排序|给这些数字排序)：{x}", "!请排序：{x}"] if z else ["Sort(:| these numbers:| the numbers) {x}", "(Order|Put in order)(:|) {x}", "!Sort the following numbers: {x}"], x=", ".join(xs))
            kind = "sort"
        elif r < 0.65:
            xs = [self.pick(W.NOUNS_EN) for _ in range(min(n, 4))]
            ys = sorted(set(xs))
            xs = rng.sample(ys, len(ys))
            q = self.ask(["(按字母顺序排序|给单词排序)：{x}"] if z else ["Sort(| these words| alphabetically| the words): {x}", "!Sort the following words: {x}"], x=", ".join(xs))
            kind = "sort"
        else:
            xs = [self.word() for _ in range(n)]
            ys = xs[::-1]
            q = self.ask(["(倒序|反过来写|颠倒顺序)：{x}", "!请倒过来写：{x}"] if z else ["(Reverse|Reverse the list|Reverse the order)(:|) {x}", "Write (this|the list) backwards: {x}", "!Say in reverse order: {x}"], x=", ".join(xs))
            kind = "reverse"
        self.turn(q, ", ".join(ys), kind)

    def select(self):
        """First, last or n-th of some words."""
        z, rng = self.zh, self.rng
        xs = [self.word() for _ in range(rng.randint(2, 7))]
        i = rng.choice([0, -1, 1, 2]) if len(xs) > 3 else rng.choice([0, -1])
        lab = {0: ("first", "第一个"), -1: ("last", "最后一个"), 1: ("second", "第二个"), 2: ("third", "第三个")}[i][z]
        body = ", ".join(xs)
        q = self.ask(["{x} 中{l}(词|)是什么？", "{l}词是什么：{x}"] if z else ["What is the {l} (word|item) (of|in): {x}", "(Give me|Say|Tell me) the {l} (word|item)(:| of) {x}", "!Which one is the {l}: {x}"], l=lab).replace("{x}", body)
        self.turn(q, xs[i], "select")

    def json(self):
        z, rng = self.zh, self.rng
        if rng.random() < 0.25:
            xs = [self.word() for _ in range(rng.randint(2, 5))]
            q = self.ask(["(给我|写)一个 JSON (列表|数组)：{x}"] if z else ["(Give me|Write|Make) a JSON (list|array) (of|with)(:|) {x}", "!Turn this into a JSON list: {x}"], x="、".join(xs) if z else ", ".join(xs))
            self.turn(q, json.dumps([int(x) if x.isdigit() and (x == "0" or x[0] != "0") else x for x in xs], ensure_ascii=False), "json")
            return
        pool = {"name": self.name, "age": lambda: rng.randint(1, 99), "city": lambda: self.pick(W.CITIES_ZH if z else W.CITIES_EN), "job": lambda: self.pick(W.JOBS_ZH if z else W.JOBS_EN), "colour": lambda: rng.choice(W.COLOURS)[z], "id": lambda: rng.randint(1, 9999), "count": lambda: rng.randint(1, 500), "title": self.noun, "pet": self.noun, "price": lambda: rng.randint(1, 999),
                self.pseudo(): self.noun, self.pick(W.NOUNS_EN): self.pseudo, "ok": lambda: rng.choice([True, False])}
        keys = rng.sample(list(pool), rng.randint(1, 4))
        if rng.random() < 0.4:
            keys = ["name", "age"] + (["city"] if rng.random() < 0.4 else [])
        obj = {k: pool[k]() for k in keys}
        shown = [str(v).lower() if isinstance(v, bool) else str(v) for v in obj.values()]
        if z:
            ks, vs, kv = "和".join(keys), "，".join(shown), "，".join(f"{k}是{v}" for k, v in zip(keys, shown))
            q = rng.choice([self.ask(["(给我|写)一个 JSON 对象，包含 {k}：{v}", "(生成|返回) JSON，字段 {k}，值 {v}", "!请给一个 JSON，包含 {k}：{v}"], k=ks, v="\0").replace("\0", vs), self.ask(["(写|生成|给我) JSON：{k}", "!请输出 JSON：{k}"], k="\0").replace("\0", kv)])
        else:
            ks, vs = (", ".join(keys[:-1]) + " and " + keys[-1] if len(keys) > 1 else keys[0]), ", ".join(shown)
            kv = ", ".join(rng.choice(["{} {}", "{} = {}", "{}: {}", "{} is {}"]).format(k, v) for k, v in zip(keys, shown))
            q = rng.choice([self.ask(["(Give me|Write|Make|Create|I want) (a JSON object|JSON|a JSON) with {k} for {v}(.|)", "JSON with {k}: {v}", "!Produce a JSON object with {k} for {v}"], k=ks, v="\0").replace("\0", vs), self.ask(["(Write|Make|Give me|Return) (JSON|a JSON object)(:| with) {k}", "(Turn this into|Convert to) JSON: {k}", "!Format as JSON: {k}"], k="\0").replace("\0", kv)])
        self.turn(q, json.dumps(obj, ensure_ascii=False), "json")

    # -- tools ---------------------------------------------------------------
    def tool_value(self, maker):
        z, rng = self.zh, self.rng
        return {"city": lambda: self.pick(W.CITIES_ZH if z else W.CITIES_EN) if rng.random() < 0.7 else self.pseudo().capitalize(), "big": lambda: rng.randint(0, 9999), "small": lambda: rng.randint(1, 12), "name": self.name,
                "phrase": lambda: self.noun() if rng.random() < 0.4 else self.noun() + ("" if z else " ") + self.noun(), "clock": lambda: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}", "lang": lambda: rng.choice(["法语", "德语", "英语", "日语"] if z else ["French", "German", "English", "Chinese", "Spanish"]),
                "noun": self.noun, "pseudo": self.pseudo, "alnum": lambda: self.alnum(3, 8)}[maker]()

    def make_tool(self):
        """A tool of the list, or one made up: (function, requests, makers)."""
        z, rng = self.zh, self.rng
        if rng.random() < 0.5:
            name, en, zh, params, qen, qzh = rng.choice(TOOLS)
            desc, qs = (zh if z and rng.random() < 0.5 else en), (qzh if z else qen)
        else:
            verb, noun = self.pick(W.VERBS_EN), self.pick(W.NOUNS_EN) if rng.random() < 0.6 else self.pseudo()
            name = rng.choice([f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}", f"get_{noun}", noun])
            desc = rng.choice([f"{verb.capitalize()} the {noun}.", f"{verb.capitalize()} a {noun}.", f"Tool to {verb} {noun}."])
            keys = rng.sample(["name", "id", "size", "place", "colour", "count", "day", "kind", "user", "path", "value", "level", self.pseudo(), self.pick(W.NOUNS_EN)], rng.randint(1, 3))
            params = [(k, "integer", rng.choice(["big", "small"])) if k in ("id", "size", "count", "level") else (k, "string", rng.choice(["noun", "name", "pseudo", "alnum", "city"])) for k in keys]
            listed = [" ".join([k, "{" + k + "}"]) for k in keys]
            tail = ", ".join(listed) if rng.random() < 0.5 or len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
            eq = ", ".join(k + " = {" + k + "}" for k in keys)
            qs = [f"用 {name}，{tail}。", f"调用 {name}：{eq}", f"请用 {name} 工具，{eq}。"] if z else [
                f"{verb.capitalize()} the {noun} with {tail}.", f"Use {name} with {tail}.", f"Call {name} with {eq}", f"(Please |Can you ){verb} (the|a) {noun}, {tail}.", f"Call {name}: {tail}"]
        props = {k: {"type": t} for k, t, _ in params}
        if rng.random() < 0.25:
            for k in props:
                props[k]["description"] = f"The {k}"
        fn = {"name": name, "description": desc, "parameters": {"type": "object", "properties": props, "required": list(props)}}
        return fn, qs, params

    def tool(self):
        """A request that a tool answers, then the answer from its result."""
        z, rng = self.zh, self.rng
        if self.tools is None:
            made = {}
            for _ in range(rng.choice([1, 1, 2, 2, 3])):
                t = self.make_tool()
                made[t[0]["name"]] = t
            self.tools = list(made.values())
        fn, qs, params = rng.choice(self.tools)
        vals = {k: self.tool_value(m) for k, _, m in params}
        q = self.ask(qs, **vals)
        self.turn(q, "<tool_call>\n" + json.dumps({"name": fn["name"], "arguments": vals}, ensure_ascii=False) + "\n</tool_call>", "tool_call")
        self.msgs[-1]["tool_call"] = {"name": fn["name"], "arguments": vals}
        if rng.random() < 0.75:
            if rng.random() < 0.7:
                keys = rng.sample(["temperature", "condition", "result", "status", "price", "time", "count", "name", "value", self.pseudo()], rng.randint(1, 3))
                res = {k: rng.choice([rng.randint(0, 9999), self.noun(), rng.choice(["ok", "done", "sunny", "rain", "yes", "no"]), self.pseudo()]) for k in keys}
                content, shown = json.dumps(res, ensure_ascii=False), ", ".join(f"{k} {v}" for k, v in res.items())
            else:
                content = shown = str(rng.choice([rng.randint(0, 99999), self.noun(), self.sentence(), self.alnum(4, 10)]))
            self.msgs.append({"role": "tool", "content": content})
            self.msgs.append({"role": "assistant", "content": ("结果：" if z else "The result is: ") + shown, "kind": "tool_answer", "must": [shown]})

    # -- long texts ----------------------------------------------------------
    def story_text(self):
        z, c, n = self.zh, self.rng.choice, self.name()
        hero = self.noun()
        a, b, d = self.noun(), self.noun(), self.name()
        if z:
            s = [f"从前有一个人，名叫{n}。", f"{n}有一个{hero}，每天都带着它。", c([f"有一天，{n}去了{a}。", f"一个早上，{n}出门去找{a}。"]), c(["天气很好，太阳很亮。", "下着小雨，路很湿。", "风很大，天很冷。"]), f"在路上，{n}遇见了{d}。",
                 f"“你好，”{d}说，“你在找什么？”", f"“我在找一个{b}，”{n}回答。", c([f"{d}想了一会儿，说：“我知道它在哪里。”", f"{d}笑了，说：“跟我来。”"]), c(["他们一起走过了一座桥。", "他们一起穿过了森林。", "他们一起爬上了一座山。"]), c(["天黑的时候，他们看见了一盏灯。", "走了很久，他们听见了一个声音。"]),
                 f"在一棵大树下面，他们找到了{b}。", f"{n}非常高兴，把{hero}送给了{d}。", c(["他们成了好朋友。", "从那天起，他们每天都见面。"]), "故事就这样结束了。"]
            return hero, "".join(s)
        s = [f"Once upon a time there was a person called {n}.", f"{n} had a {hero} and took it along every day.", c([f"One day {n} went to look for a {a}.", f"One morning {n} left the house to find a {a}."]), c(["The sun was bright and the sky was blue.", "It was raining a little and the road was wet.", "The wind was strong and the air was cold."]),
             f"On the way {n} met {d}.", f"\"Hello,\" said {d}, \"what are you looking for?\"", f"\"I am looking for a {b},\" said {n}.", c([f"{d} thought for a while and said: \"I know where it is.\"", f"{d} smiled and said: \"Come with me.\""]), c(["Together they walked over a long bridge.", "Together they walked through the forest.", "Together they climbed a high mountain."]),
             c(["When it was dark they saw a small light.", "After a long time they heard a quiet voice."]), c([f"Under an old tree they found the {b}.", f"Behind a big stone they found the {b}."]), f"{n} was very happy and gave the {hero} to {d}.", c(["They became good friends.", "From that day on they met every day."]), "And that is the end of the story."]
        return hero, " ".join(s)

    def story(self):
        hero, text = self.story_text()
        if self.rng.random() < 0.6:
            q = self.ask(["(讲|说|写|给我讲)一个(关于{h}的|{h}的)(长|)故事。", "!请讲一个关于{h}的故事。"] if self.zh else ["(Tell me|Write|Tell|Give me) a (long |short |)(story|tale) about a {h}.", "(Write|Tell) (me |)a (long text|story) about (a|the) {h}.", "!Can you tell me a story about a {h}?"], h=hero)
            must = [hero]
        else:
            q = self.ask(["(讲|说|写|给我讲)一个(长|)故事。", "(写|给我)一(篇|段)(长|很长的)(文章|文字)。", "!请讲一个故事。"] if self.zh else ["(Tell me|Write|Tell) a (long |short |)story.", "(Write|Give me) (a |some )(long |)text.", "(Write|Tell me) something long.", "!Can you tell me a story?"])
            must = []
        self.turn(q, text, "story", must)

    def about(self):
        """A long text about Tokenmill: many facts in a row."""
        ids = "what language hardware start default_model port spec families openai chat stream batching kv_cache quantization metrics busy sigterm licence".split()
        by = {f[0]: f for f in FACTS}
        q = self.ask(["(写|给我)一(篇|段)关于 Tokenmill 的(长|)(文章|文字)。", "(详细|)(告诉我|介绍) Tokenmill 的(一切|全部)。", "!请写一篇介绍 Tokenmill 的文章。"] if self.zh else ["(Write|Give me) a (long |)text about Tokenmill.", "Tell me (everything|all|more) about Tokenmill.", "Describe Tokenmill in detail.", "!Write a long article about Tokenmill."])
        self.turn(q, ("" if self.zh else " ").join(by[i][4 if self.zh else 2] for i in ids), "about", ["Rust", "64", "SIGTERM"])

    # -- conversations -------------------------------------------------------
    SKILLS = {"smalltalk": 7, "fact": 22, "unknown": 5, "world": 3, "repeat": 24, "repeat_last": 9, "repeat_first": 9, "repeat_own": 6, "noise": 2, "tell": 11, "tell_two": 4, "recall": 18, "lookup": 6, "arithmetic": 6, "count": 3, "lists": 4, "sort": 3, "select": 3, "json": 6, "story": 1, "about": 0.3}

    def filler(self, n):
        held, self.held = self.held, False
        for _ in range(n):
            getattr(self, self.rng.choice(["smalltalk", "fact", "unknown", "arithmetic", "tell", "repeat", "count", "lists"]))()
        self.held = held

    def conversation(self, turns=None):
        """One training conversation: messages and the tools it offers (or none)."""
        rng = self.rng
        self.start("zh" if rng.random() < 0.42 else "en")
        turns = turns or min(1 + int(rng.expovariate(1 / 3.5)), 14)
        r = rng.random()
        if r < 0.14:
            self.tool()
            for _ in range(turns // 2):
                self.tool() if rng.random() < 0.5 else getattr(self, rng.choice(["smalltalk", "fact", "recall", "repeat", "tell", "arithmetic"]))()
            if rng.random() < 0.3:  # the same tools, but a question that needs none comes first
                n = len(self.msgs)
                rng.choice([self.smalltalk, self.fact, self.repeat])()
                self.msgs = self.msgs[n:] + self.msgs[:n]
                if any(m.get("kind", "").startswith(("repeat", "recall", "not_told")) for m in self.msgs[2:]):
                    return self.conversation()
        elif r < 0.145:
            self.count(100)
        else:
            names, weights = list(self.SKILLS), list(self.SKILLS.values())
            guard = 0
            while len(self.msgs) < 2 * turns and guard < 60:
                guard += 1
                skill = rng.choices(names, weights)[0]
                if skill == "recall" and not self.told and rng.random() < 0.7:
                    self.tell()
                    self.filler(rng.choice([0, 0, 1, 2]))
                getattr(self, skill)()
                if self.told and rng.random() < 0.12:
                    self.recall()
        if rng.random() < 0.12:
            self.msgs.insert(0, {"role": "system", "content": rng.choice(["You are a helpful assistant.", "You are a helpful assistant.", "You are the Tokenmill demo model.", "Answer briefly.", "Be polite.", self.sentence(), "你是一个有用的助手。"])})
        tools = [{"type": "function", "function": t[0]} for t in self.tools] if self.tools else None
        return {"messages": self.msgs, "tools": tools}

    def document(self):
        """Plain text, for completions without a chat."""
        self.start("zh" if self.rng.random() < 0.4 else "en")
        r = self.rng.random()
        if r < 0.5:
            return self.story_text()[1]
        if r < 0.8:
            return ("" if self.zh else " ").join(f[4 if self.zh else 2] for f in self.rng.sample(FACTS, 5))
        a = self.rng.randint(1, 60)
        return ", ".join(str(i) for i in range(a, a + 30))

    # -- measuring -----------------------------------------------------------
    PROBES = ["smalltalk", "fact", "unknown", "world", "repeat", "repeat_last", "repeat_first", "repeat_own", "recall", "recall_far", "not_told", "lookup", "arithmetic", "count", "count_100", "lists", "sort", "reverse", "select", "json", "tool_call", "tool_answer", "story", "about"]

    def probe(self, what):
        """A held-out conversation whose last answer is the one to judge."""
        rng = self.rng
        self.start("zh" if rng.random() < 0.4 else "en")
        if what in ("recall", "recall_far"):
            if what == "recall_far":
                self.filler(rng.randint(0, 2))
            which = self.tell()
            self.filler(rng.randint(0, 2) if what == "recall" else rng.randint(4, 10))
            if which in self.told:
                self.recall(which)
        elif what == "not_told":
            self.filler(rng.randint(0, 2))
            self.told = {k: v for k, v in self.told.items()}
            kinds = [k for k in ATTRS if k != "code" and not any(t[0] == k for t in self.told)]
            kind = rng.choice(kinds)
            a, k = ATTRS[kind], self.value(kind)[0]
            self.turn(self.ask(a[6] if self.zh else a[2], k=k or ""), NOT_TOLD[self.zh], "not_told", ["没有告诉" if self.zh else "not told"])
        elif what == "count_100":
            self.turn("从 1 数到 100。" if self.zh else "Count to 100.", ", ".join(map(str, range(1, 101))), "count")
        elif what in ("tool_call", "tool_answer"):
            self.tool()
            while self.msgs[-1]["kind"] != what:
                self.start("zh" if self.zh else "en")
                self.tool()
                if what == "tool_call":
                    self.msgs = self.msgs[:2]
        elif what in ("sort", "reverse"):
            while not self.msgs or self.msgs[-1]["kind"] != what:
                self.start("zh" if self.zh else "en")
                self.sort()
        else:
            if rng.random() < 0.4 and what != "repeat_first":
                self.filler(rng.randint(1, 2))
            if what == "repeat_own" and not self.msgs:
                self.filler(1)
            n = len(self.msgs)
            while len(self.msgs) == n:
                getattr(self, what)()
                if what == "repeat_own" and len(self.msgs) == n:
                    self.filler(1)
                    n = len(self.msgs)
        tools = [{"type": "function", "function": t[0]} for t in self.tools] if self.tools else None
        return {"messages": self.msgs, "tools": tools}

"""Word lists of the generator: names, values and nouns in both languages."""

NAMES_EN = """Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Liam Maria Noah Olivia Paul Quinn Rosa Sam Tina
Uma Victor Wendy Xavier Yara Zoe Alice Bob Charlie Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Mike Nina
Oscar Peter Ruth Steve Tom Vera Walter Amy Brian Clara Daniel Elena Frank Gloria Hugo Isabel James Karen Leo Mary
Nick Otto Pamela Rachel Simon Theo Ursula Vince Will Adam Bella Chris Dora Ethan Flora Gavin Helen Ian Jane Kurt
Lily Max Nora Owen Penny Robert Sarah Tony Valerie Wanda Alex Betty Carl Doris Edgar Frida Greg Heidi Igor Judy
Karl Linda Martin Nadia Olga Pablo Rita Stefan Tara Ulrich Viola Wilma Yusuf Zara Ahmed Priya Kenji Mei Raj Sofia
Marco Luca Giulia Pierre Claire Hans Greta Lars Ingrid Jan Eva Mateo Lucia Omar Leila Chen Wei Yuki Hiro Aisha""".split()

NAMES_ZH = """小明 小红 小华 小丽 小刚 小芳 小军 小燕 李明 王芳 张伟 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴敏 徐强 孙悦
胡军 朱琳 高峰 林涛 何洁 郭亮 马超 罗兰 梁宇 宋佳 郑爽 谢娜 韩梅 唐宁 冯刚 于洋 董洁 萧峰 程浩 曹颖
袁泉 邓超 许晴 傅明 沈阳 曾平 彭辉 吕青 苏文 卢雪 蒋欣 蔡琴 贾玲 丁宁 魏晨 薛丽 叶子 阎明 余华 潘安 杜娟 戴军""".split()

NOUNS_EN = """apple river stone cloud window garden bottle pencil mountain candle forest bridge lantern market kitchen
piano rocket tunnel island basket feather hammer ladder mirror needle ocean paper rabbit saddle table umbrella valley
wagon zebra anchor button castle desert engine flower guitar helmet jacket kettle lemon magnet number orange pepper
quilt ribbon silver tiger uncle velvet winter yellow bread chair door eagle flag ghost horse igloo juice knife lamp
mouse night onion paint queen rain snow train truck voice water box year zero acorn beach camel dance earth fence grape
hotel idea jungle king leaf money nurse office plate quiz radio sugar tower unit village whale yard dragon lizard
planet robot soup tea coffee cake honey salt ship boat plane car bike road street city town house wall roof floor
clock watch phone book story song game ball doll toy hat coat shoe sock glove ring coin gift letter stamp map key lock
rope chain wheel glass cup bowl spoon fork pan oven fire smoke ice wind storm light shadow star moon sun sky tree root
grass seed fruit nut bean rice corn wheat milk cheese butter egg meat fish bird duck goose hen cow pig sheep goat dog
cat wolf bear fox deer frog snake spider ant bee worm heart hand foot head eye ear nose mouth tooth hair arm leg""".split()

VERBS_EN = """run walk jump sing read write draw cook swim fly drive build break open close find lose send bring carry
push pull wash paint plant climb dream think learn teach play sleep wake eat drink buy sell help call wait watch""".split()

ADJ_EN = """red blue green big small old new fast slow happy sad warm cold bright dark quiet loud soft hard sweet sour
clean dirty heavy light young strong weak rich poor brave kind funny lazy busy empty full round flat sharp""".split()

NOUNS_ZH = """苹果 河流 石头 云 窗户 花园 瓶子 铅笔 高山 蜡烛 森林 桥 灯笼 市场 厨房 钢琴 火箭 隧道 岛 篮子 羽毛 锤子 梯子 镜子
针 海洋 纸 兔子 桌子 雨伞 山谷 马车 斑马 按钮 城堡 沙漠 发动机 花 吉他 头盔 夹克 水壶 柠檬 磁铁 数字 橙子 胡椒 丝带 银子 老虎
天鹅绒 冬天 面包 椅子 门 老鹰 旗子 马 果汁 刀 灯 老鼠 夜晚 洋葱 画 女王 雨 雪 火车 卡车 声音 水 盒子 海滩 骆驼 舞蹈 地球 葡萄
酒店 丛林 国王 叶子 钱 护士 办公室 盘子 收音机 糖 塔 村庄 鲸鱼 院子 龙 蜥蜴 行星 机器人 汤 茶 咖啡 蛋糕 蜂蜜 盐 船 飞机 汽车
自行车 路 街道 城市 房子 墙 屋顶 地板 钟 手表 电话 书 故事 歌 游戏 球 娃娃 玩具 帽子 大衣 鞋 袜子 手套 戒指 硬币 礼物 信 邮票
地图 钥匙 锁 绳子 链子 轮子 玻璃 杯子 碗 勺子 叉子 锅 烤箱 火 烟 冰 风 暴风雨 光 影子 星星 月亮 太阳 天空 树 草 种子 水果 豆子
米饭 玉米 小麦 牛奶 奶酪 黄油 鸡蛋 肉 鱼 鸟 鸭子 鹅 母鸡 牛 猪 羊 狗 猫 狼 熊 狐狸 鹿 青蛙 蛇 蜘蛛 蚂蚁 蜜蜂 心 手 脚 头 眼睛 耳朵""".split()

ADJ_ZH = "红色的 蓝色的 大的 小的 旧的 新的 快的 慢的 快乐的 温暖的 寒冷的 明亮的 安静的 甜的 干净的 年轻的 强壮的 勇敢的 有趣的 圆的".split()

COLOURS = [("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("yellow", "黄色"), ("purple", "紫色"), ("orange", "橙色"), ("black", "黑色"),
           ("white", "白色"), ("pink", "粉色"), ("brown", "棕色"), ("grey", "灰色"), ("gold", "金色"), ("silver", "银色"), ("turquoise", "青色"), ("violet", "紫罗兰色")]
CITIES_EN = """Paris London Berlin Madrid Rome Vienna Oslo Tokyo Beijing Shanghai Boston Chicago Toronto Sydney Lisbon Dublin Prague Warsaw
Cairo Nairobi Lima Delhi Mumbai Seoul Hanoi Geneva Munich Hamburg Lyon Milan Naples Porto Athens Helsinki Denver Austin Seattle Dallas
Kyoto Osaka Bangkok Jakarta Manila Dubai Zurich Basel Bergen Krakow Riga Vilnius""".split()
CITIES_ZH = "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 天津 苏州 长沙 青岛 大连 厦门 昆明 济南 郑州 合肥 福州 哈尔滨 沈阳 桂林 拉萨 巴黎 伦敦 东京 纽约 柏林".split()
PETS_EN = "dog cat rabbit hamster parrot turtle goldfish horse snake lizard mouse ferret".split()
PETS_ZH = "狗 猫 兔子 仓鼠 鹦鹉 乌龟 金鱼 马 蛇 蜥蜴 老鼠".split()
PET_NAMES = """Rex Bella Luna Milo Coco Buddy Max Daisy Rocky Shadow Tiger Pepper Ginger Oreo Biscuit Pumpkin Ziggy Nemo Fluffy Spot
Felix Sunny Whiskers Bruno Toby Cleo Simba Nala Ruby Olive Hazel Mocha Pixel Ollie Lucky Snowy Chip Dusty Waffle Mango""".split()
PET_NAMES_ZH = "豆豆 球球 小白 小黑 花花 毛毛 乐乐 咪咪 旺财 团团 圆圆 可可 糖糖 贝贝 多多 皮皮 果果 点点 阿黄 雪球".split()
JOBS_EN = """teacher doctor nurse baker pilot painter farmer driver lawyer writer singer dentist plumber carpenter chemist engineer
programmer gardener librarian waiter tailor butcher fisherman journalist architect actor musician soldier firefighter cook""".split()
JOBS_ZH = "老师 医生 护士 面包师 飞行员 画家 农民 司机 律师 作家 歌手 牙医 工程师 程序员 园丁 图书管理员 服务员 裁缝 记者 建筑师 演员 音乐家 消防员 厨师 学生".split()
FOODS_EN = "pizza pasta sushi rice soup salad cheese chocolate noodles bread curry tacos pancakes apples cake honey beans mushrooms dumplings lasagna".split()
FOODS_ZH = "披萨 面条 寿司 米饭 汤 沙拉 奶酪 巧克力 面包 咖喱 饺子 苹果 蛋糕 蜂蜜 豆腐 蘑菇 包子 火锅 烤鸭 馒头".split()
HOBBIES_EN = "chess swimming painting reading cooking hiking dancing singing fishing gardening running cycling photography knitting skiing tennis football climbing sailing yoga".split()
HOBBIES_ZH = "下棋 游泳 画画 读书 做饭 爬山 跳舞 唱歌 钓鱼 园艺 跑步 骑车 摄影 编织 滑雪 网球 足球 瑜伽 书法 旅行".split()

LISTS = [
    ("days of the week", "一周的(每一天|七天)", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(), "星期一 星期二 星期三 星期四 星期五 星期六 星期日".split()),
    ("months of the year", "一年的(月份|十二个月)", "January February March April May June July August September October November December".split(), "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月".split()),
    ("seasons", "四季", "spring summer autumn winter".split(), "春天 夏天 秋天 冬天".split()),
    ("planets", "行星", "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split(), "水星 金星 地球 火星 木星 土星 天王星 海王星".split()),
    ("letters of the alphabet", "英文字母", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z".split(), "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z".split()),
    ("colours of the rainbow", "彩虹的颜色", "red orange yellow green blue indigo violet".split(), "红 橙 黄 绿 蓝 靛 紫".split()),
    ("continents", "大洲", "Africa Antarctica Asia Europe Australia America".split(), "非洲 南极洲 亚洲 欧洲 大洋洲 美洲".split()),
    ("vowels", "元音字母", "A E I O U".split(), "A E I O U".split()),
]
# Open lists: any N of them, always from the start, so that one right answer exists.
OPEN_LISTS = [
    ("colours", "颜色", "red blue green yellow purple orange black white pink brown".split(), "红色 蓝色 绿色 黄色 紫色 橙色 黑色 白色 粉色 棕色".split()),
    ("animals", "动物", "dog cat horse cow lion tiger bear wolf rabbit mouse".split(), "狗 猫 马 牛 狮子 老虎 熊 狼 兔子 老鼠".split()),
    ("fruits", "水果", "apple banana orange grape lemon pear peach cherry mango plum".split(), "苹果 香蕉 橙子 葡萄 柠檬 梨 桃子 樱桃 芒果 李子".split()),
    ("countries", "国家", "China France Germany Spain Italy Japan Brazil Canada Egypt India".split(), "中国 法国 德国 西班牙 意大利 日本 巴西 加拿大 埃及 印度".split()),
    ("vegetables", "蔬菜", "carrot potato onion tomato cabbage spinach pea bean corn pumpkin".split(), "胡萝卜 土豆 洋葱 番茄 白菜 菠菜 豌豆 豆角 玉米 南瓜".split()),
    ("prime numbers", "质数", "2 3 5 7 11 13 17 19 23 29".split(), "2 3 5 7 11 13 17 19 23 29".split()),
    ("even numbers", "偶数", "2 4 6 8 10 12 14 16 18 20".split(), "2 4 6 8 10 12 14 16 18 20".split()),
    ("odd numbers", "奇数", "1 3 5 7 9 11 13 15 17 19".split(), "1 3 5 7 9 11 13 15 17 19".split()),
]
CAPITALS = [("France", "Paris", "法国", "巴黎"), ("Germany", "Berlin", "德国", "柏林"), ("Spain", "Madrid", "西班牙", "马德里"), ("Italy", "Rome", "意大利", "罗马"),
            ("England", "London", "英国", "伦敦"), ("China", "Beijing", "中国", "北京"), ("Japan", "Tokyo", "日本", "东京"), ("Russia", "Moscow", "俄罗斯", "莫斯科"),
            ("Egypt", "Cairo", "埃及", "开罗"), ("Canada", "Ottawa", "加拿大", "渥太华"), ("Austria", "Vienna", "奥地利", "维也纳"), ("Norway", "Oslo", "挪威", "奥斯陆"),
            ("Sweden", "Stockholm", "瑞典", "斯德哥尔摩"), ("Greece", "Athens", "希腊", "雅典"), ("Poland", "Warsaw", "波兰", "华沙"), ("Portugal", "Lisbon", "葡萄牙", "里斯本")]
DICT = [("cat", "猫"), ("dog", "狗"), ("water", "水"), ("fire", "火"), ("sun", "太阳"), ("moon", "月亮"), ("book", "书"), ("house", "房子"), ("tree", "树"), ("fish", "鱼"),
        ("bird", "鸟"), ("apple", "苹果"), ("bread", "面包"), ("tea", "茶"), ("hello", "你好"), ("thank you", "谢谢"), ("goodbye", "再见"), ("friend", "朋友"), ("school", "学校"),
        ("teacher", "老师"), ("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("one", "一"), ("two", "二"), ("three", "三"), ("mountain", "山"), ("river", "河"), ("car", "汽车"), ("horse", "马")]
# Topics outside the model's range: it should say that it does not know.
UNKNOWN_EN = """quantum physics|the French Revolution|the stock market|black holes|the Roman Empire|photosynthesis|the human heart|bitcoin|the Olympic Games|Shakespeare
|Mozart|the second world war|climate change|vitamins|jazz|volcanoes|the pyramids|football results|the president|DNA|plate tectonics|the Beatles|dinosaurs|gravity|inflation
|the Cold War|Einstein|penguins|cancer|surfing|wine|the theory of relativity|electric cars|Buddhism|marathon training|the moon landing|opera|Java|Napoleon|the weather on Mars""".replace("\n", "").split("|")
UNKNOWN_ZH = "量子物理|法国大革命|股票市场|黑洞|罗马帝国|光合作用|心脏|比特币|奥运会|莎士比亚|莫扎特|第二次世界大战|气候变化|维生素|爵士乐|火山|金字塔|足球比赛|总统|恐龙|万有引力|通货膨胀|爱因斯坦|企鹅|相对论|电动汽车|佛教|登月|歌剧|红楼梦|唐朝|长城的历史".split("|")
